#pragma once

// Included before everything else. The bindings register for the dispatch key CUDA, which becomes
// the CPU's key here.
#include <ATen/ATen.h>
#include <torch/library.h>
#define CUDA CPU
