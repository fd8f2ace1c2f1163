"""The numbers that the papers print, for tables that show them beside the ones measured here."""

from dataloaders import dataset_class

# By method, then by data set and number of labels: values of the data set's `reported` metrics,
# overlaps in percent, None where the paper gives none.
PUBLISHED = {
    "supervised": {
        ("LA", 4): (52.55, None, 47.05, 9.87),
        ("LA", 8): (79.99, 68.12, 21.11, 5.48),
        ("LA", 16): (86.03, 76.06, 14.26, 3.51),
        ("LA", 80): (91.14, 83.82, 5.75, 1.52),
        ("ACDC", 3): (47.83, 37.01, 31.16, 12.62),
        ("ACDC", 7): (79.41, 68.11, 9.35, 2.70),
        ("ACDC", 70): (91.44, 84.59, 4.30, 0.99),
        ("BraTS2019", 25): (73.00, 59.96, 42.64, 2.96),
        ("BraTS2019", 50): (76.14, 64.15, 36.01, 2.70),
    },
    "dmd": {
        ("LA", 8): (89.70, 81.42, 6.88, 1.78),
        ("LA", 16): (90.46, 82.66, 6.39, 1.62),
        ("ACDC", 3): (66.23, 55.84, 8.66, 2.40),
    },
    "dtml": {("LA", 16): (90.12, 82.14, 7.01, 1.82)},
    "ugmcl": {
        ("LA", 16): (90.16, 82.18, 6.50, 1.98),
        ("BraTS2019", 25): (82.82, 72.77, 11.29, 2.30),
        ("BraTS2019", 50): (83.61, 73.98, 11.44, 2.26),
    },
    "cml": {
        ("LA", 4): (87.63, None, 8.92, 2.23),
        ("LA", 8): (90.36, None, 6.06, 1.68),
        ("ACDC", 3): (88.53, None, 1.87, 0.57),
        ("ACDC", 7): (89.42, None, 1.42, 0.52),
        ("BraTS2019", 25): (85.26, None, 9.08, 1.83),
        ("BraTS2019", 50): (86.63, None, 7.83, 1.45),
    },
    "coranet": {
        ("Pancreas", 12): (79.67, 66.69, None, 1.89, 7.59),
        ("Pancreas2d", 31): (67.01, 68.41, 74.19, 15.90),
        ("endocardium", 5): (86.67, 83.21, 93.19, 10.91),
    },
    "coranet_ovr": {("ACDC", 14): (86.10, None, None, None)},
}


def published_row(method: str, dataset: str, labelnum: int) -> tuple[float | None, ...] | None:
    """The paper's numbers in the order of the data set's `reported`; None where it has none."""
    return PUBLISHED.get(method, {}).get((dataset, labelnum))


def published(method: str, dataset: str, labelnum: int) -> dict[str, float]:
    """The paper's numbers by metric, overlaps in percent; empty where it has none."""
    values = published_row(method, dataset, labelnum)
    if values is None:
        return {}
    named = zip(dataset_class(dataset).reported, values, strict=True)
    return {metric: value for metric, value in named if value is not None}
