#pragma once

// Included before everything else: the bindings register for the dispatch key CUDA, and here that
// is the CPU's.
#include <ATen/ATen.h>
#include <torch/library.h>
#define CUDA CPU
