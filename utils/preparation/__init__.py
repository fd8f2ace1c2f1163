"""From image files to a data set's folder: reading, checking, resampling, reporting."""
