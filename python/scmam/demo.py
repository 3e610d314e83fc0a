"""The demo: a small study of 700 real blood cells, some minutes on two cores."""

from pathlib import Path

from .settings import Config, Data, Evaluation, Masking, Study, Training
from .study.folder import Study as StudyFolder

# The latents are as wide as the model, and without the weight decay that would make their masks
# uniform.
DEMO = Config(
    data=Data(genes="variable", num_genes=200),
    masking=Masking(latent_dim=64, num_latents=32, latent_heads=4),
    training=Training(
        steps=200,
        batch_size=32,
        validate_every=50,
        checkpoint_every=200,
        masking_weight_decay=0.0,
        device="cpu",
    ),
    evaluation=Evaluation(folds=3, epochs=5),
    study=Study(
        arms=("uniform", "uniform-half", "mam"), seeds=(0, 1, 2), reference="uniform", jobs=2
    ),
)


def run(
    folder: str | Path, *, config: Config = DEMO, jobs: int | None = None, progress: bool = True
) -> StudyFolder:
    """Compare the arms of the demo in `folder`, a study folder, whose finished runs are kept.

    Args:
        folder: new, empty, or a demo that was stopped.
        config: the sizes.
        jobs: runs at a time; None: as the configuration says.
        progress: show it.

    Raises:
        RunError: the folder is something else.
    """
    from .config import with_settings
    from .study.comparison import compare

    if jobs is not None:
        config = with_settings(config, study={"jobs": jobs})
    return compare(config, folder, progress=progress)
