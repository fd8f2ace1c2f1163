"""The figures that `code/figures.py` draws, each a function of its parsed options.

maps          signed distances, entropy, gradients
masks         pseudo-labels, and CoraNet's certain and uncertain region
lines         metrics over training, and bars
side_by_side  contours and surfaces of several runs
shared        opens the data, names the runs, writes the files
"""
