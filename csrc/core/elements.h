#pragma once

// Shared by the operators that only move voxels. They know an element by its size only, because
// types of one size move alike. Images and rows are volumes with axes of extent 1.

#include <cstdint>

#include "host_device.h"

namespace semiseg {

struct Bytes16 {  // complex128
  std::uint64_t low, high;
};

// Calls body(Element{}) with an element of `bytes` bytes: 1, 2, 4, 8 or 16.
template <typename Body>
void with_element(int bytes, const Body& body) {
  switch (bytes) {
    case 1:
      return body(std::uint8_t{});
    case 2:
      return body(std::uint16_t{});
    case 4:
      return body(std::uint32_t{});
    case 8:
      return body(std::uint64_t{});
    default:
      return body(Bytes16{});
  }
}

// The place of `axis` of an image or volume of `axes` axes among a volume's three axes. Its last
// axis is always the last.
SEMISEG_HOST_DEVICE int volume_axis(int axis, int axes) { return axis + 1 == axes ? 2 : axis; }

}  // namespace semiseg
