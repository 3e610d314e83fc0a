"""Interpretation of the masks of a run: the genes that they hide, the distance from chance, and the
attention of the latents.

`interpret` draws masks of every cell with the weights of a run and writes the folder ``genes/``
beside them:

- ``frequencies.csv``, a row a gene: gene, mean_expression (as the model sees it, zeros included),
  detected (share of the cells where it is not zero), hidden (share of all masks that hide it),
  hidden_error (its standard error), hidden_when_nonzero, uniform (what a uniform mask that hides as
  many positions would give), expected (what its mean expression predicts), beyond_expression
  (hidden - expected).
- ``frequencies_by_type.csv``, a row a cell type and gene, where there are types: cell_type, gene,
  cells, mean_expression, detected, hidden, hidden_when_nonzero, uniform.
- ``ranking.csv``: the genes by beyond_expression, most first; z is the same in standard errors,
  beyond_uniform is hidden - uniform.
- ``latents.json``: one object; see `summary.Summary`.
- ``masks.npz``: some cells for pictures; see `examples.Examples`.
- ``enrichment.csv`` and ``enrichment_beyond_expression.csv``, where gene sets were given: those
  over-represented among the genes hidden most, and among the first of ``ranking.csv``; see
  `enrichment.over_representation`.
- ``hidden_by_expression.png`` and ``masks.png``; ``hidden_by_type.png`` and ``specific_genes.png``
  where there are types.
"""
