"""The pictures of the documentation, drawn from real cells: python -m benchmarks.pictures."""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import ListedColormap

import mam_kernels as mam

FOLDER = Path(__file__).parents[1] / "docs" / "pictures"
MASKINGS = Path(__file__).parent / "results" / "maskings"
CELLS, GENES = 16, 90


def real_cells() -> tuple[torch.Tensor, torch.Tensor]:
    """Values of all genes of some cells of scanpy's pbmc68k_reduced, and the genes to show."""
    import scanpy

    adata = scanpy.datasets.pbmc68k_reduced()
    order = adata.obs["bulk_labels"].argsort().to_numpy()[:: len(adata) // CELLS][:CELLS]
    values = torch.from_numpy(adata.raw.X[order].toarray()).float()
    shown = (values > 0).sum(dim=0).argsort(descending=True)[::3][:GENES].sort().values
    return values, shown


def masking() -> plt.Figure:
    """From values to importance to mask, for a few cells."""
    values, shown = real_cells()
    torch.manual_seed(0)
    masker = mam.MultinomialAttentionMasking(mask_ratio=0.3)
    out = masker(values, seed=0)
    share = out.importance / out.importance.mean(dim=1, keepdim=True)
    hidden = torch.where(out.mask, 2.0, (values > 0).float())

    figure, axes = plt.subplots(3, 1, figsize=(7.2, 4.6), layout="constrained")
    colours = ListedColormap(["#f4f4f4", "#9a9a9a", "#d1495b"])  # zero, non-zero, hidden
    parts = (
        ("values: log counts of 16 cells", values, "Greys", None),
        ("importance: attention over its mean in the cell", share, "viridis", None),
        ("mask: 30 % of the genes of each cell", hidden, colours, (0, 2)),
    )
    for axis, (title, matrix, colours, limits) in zip(axes, parts, strict=True):
        low, high = limits or (matrix[:, shown].min(), matrix[:, shown].max())
        image = axis.imshow(
            matrix[:, shown].detach(), cmap=colours, aspect="auto", vmin=low, vmax=high,
            interpolation="nearest",
        )  # fmt: skip
        axis.set_title(title, loc="left", fontsize=9)
        axis.set_ylabel("cells", fontsize=8)
        axis.set_xticks([])
        axis.set_yticks([])
        bar = figure.colorbar(image, ax=axis, pad=0.01, fraction=0.03)
        bar.ax.tick_params(labelsize=7)
        if limits:
            bar.set_ticks([1 / 3, 1, 5 / 3], labels=["zero", "non-zero", "hidden"])
    axes[-1].set_xlabel(f"{GENES} of {values.shape[1]} genes", fontsize=8)
    return figure


def maskings() -> None:
    """Of the committed benchmark: score against share, what moves scores, both with more genes,
    learning curves, and those of longer runs.
    """
    import pandas
    from scmam.benchmark.arms import AT_50, GROUPS, UNIFORM, UNTRAINED
    from scmam.benchmark.page import arms_drawing, by_genes, curves_drawing, shares_drawing

    strategies = [arm for arm in GROUPS["strategies"] if arm != UNTRAINED]
    drawings = {}
    summary = pandas.read_csv(MASKINGS / "summary.csv")
    for ending, part in zip(("", "_more_genes"), by_genes(summary), strict=False):
        drawings[f"shares{ending}.png"] = shares_drawing(part, "probe")
        drawings[f"what_moves_scores{ending}.png"] = arms_drawing(
            part, "probe", against="uniform", arms=strategies
        )
    if (MASKINGS / "curves.csv").is_file():
        curves = pandas.read_csv(MASKINGS / "curves.csv")
        drawings["learning_curves.png"] = curves_drawing(curves, "probe")
    if (MASKINGS / "long" / "curves.csv").is_file():
        curves = pandas.read_csv(MASKINGS / "long" / "curves.csv")
        # Of the other arms there are too few seeds.
        pair = curves[curves.arm.isin([UNIFORM, AT_50])].sort_values("genes", kind="stable")
        drawings["longer_runs.png"] = curves_drawing(pair, "probe")
    for name, drawing in drawings.items():
        if drawing is not None:
            drawing.save_png(FOLDER / name)
            print(f"Written: {FOLDER / name}")


def main() -> None:
    """Write every picture."""
    FOLDER.mkdir(exist_ok=True)
    masking().savefig(FOLDER / "masking.png", dpi=150)
    print(f"Written: {FOLDER / 'masking.png'}")
    maskings()


if __name__ == "__main__":
    main()
