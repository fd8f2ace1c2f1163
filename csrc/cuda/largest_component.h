#pragma once

#include <cuda_runtime_api.h>

#include "../core/largest_component.h"

namespace semiseg::components {

// Bytes of device scratch memory that the launcher needs.
std::size_t largest_component_scratch(std::int64_t items, const Grid& grid, int classes);

// Writes the largest components of `items` grids of labels to `out`. Both are contiguous, not
// empty, and on the current device. T is an unsigned integer of any width.
template <typename T>
cudaError_t launch_largest_component(const T* labels, T* out, void* scratch, std::int64_t items,
                                     const Grid& grid, int classes, cudaStream_t stream);

}  // namespace semiseg::components
