"""Cell-type classification from a pretrained encoder, by cross-validation, and the baselines that
it is measured against.

- ``linear-probe``: logistic regression on the frozen features.
- ``mlp-probe``: the published head, two layers after batch norm, on the frozen encoder.
- ``fine-tuning``: embeddings, one encoder block and a two-layer head are trained, all else is
  frozen.
- baselines ``logistic-regression`` and ``pca``: classifiers of the log-normalised counts
  themselves.

With ``evaluation.protocol: published`` there is one test set, scored on bootstraps, and fine-tuning
follows the published recipe (`published`).

`evaluate` writes ``evaluation/METHOD.json`` (an `Evaluation` each) and ``evaluation/embedding.npz``
into a run folder.
"""
