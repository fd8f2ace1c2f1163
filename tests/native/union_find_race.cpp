// Runs the union-find of csrc/core/largest_component.h on several threads and compares with one
// thread. Under -fsanitize=thread (sanitize.py) a data race ends the program.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "../../csrc/core/largest_component.h"

using namespace semiseg::components;

namespace {

constexpr int kThreads = 6;

using Edge = std::pair<std::int32_t, std::int32_t>;

// Each element's root and that root's size, found depth first.
struct Expected {
  std::vector<std::int32_t> root;
  std::vector<std::int32_t> size;

  Expected(const std::vector<std::int32_t>& weights, const std::vector<Edge>& edges)
      : root(weights.size()), size(weights.size(), 0) {
    for (std::size_t i = 0; i < root.size(); ++i) root[i] = static_cast<std::int32_t>(i);
    std::vector<std::vector<std::int32_t>> neighbours(root.size());
    for (const auto& [a, b] : edges) {
      neighbours[a].push_back(b);
      neighbours[b].push_back(a);
    }
    std::vector<bool> seen(root.size(), false);
    std::vector<std::int32_t> stack;
    for (std::int32_t start = 0; start < static_cast<std::int32_t>(root.size()); ++start) {
      if (seen[start]) continue;
      seen[start] = true;
      stack.push_back(start);
      while (!stack.empty()) {
        const std::int32_t at = stack.back();
        stack.pop_back();
        root[at] = start;
        size[start] += weights[at];
        for (const std::int32_t next : neighbours[at]) {
          if (!seen[next]) stack.push_back(next);
          seen[next] = true;
        }
      }
    }
  }
};

template <typename Work>
void on_threads(const Work& work) {
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) threads.emplace_back([&work, t] { work(t); });
  for (auto& thread : threads) thread.join();
}

void fail(const char* name, const char* what, std::size_t element) {
  std::fprintf(stderr, "union_find_race: %s: wrong %s of element %zu\n", name, what, element);
  std::exit(1);
}

// Joins along all edges. The threads take the edges in turn, so that they meet everywhere, and look
// for roots meanwhile.
void check(const char* name, const std::vector<std::int32_t>& weights,
           const std::vector<Edge>& edges) {
  const Expected expected(weights, edges);
  std::vector<std::int32_t> parents(weights.size());
  for (std::size_t i = 0; i < parents.size(); ++i) parents[i] = ~weights[i];
  on_threads([&](int thread) {
    for (std::size_t i = thread; i < edges.size(); i += kThreads) {
      unite<Shared>(parents.data(), edges[i].first, edges[i].second);
      if (const auto any = edges[edges.size() - 1 - i].first;
          find_root<Shared>(parents.data(), any) > any)
        fail(name, "order", any);
    }
  });
  // As in the kernels: all threads find roots and propose them as the largest at the same time.
  std::vector<std::int32_t> roots(parents.size());
  Key best = 0;
  on_threads([&](int thread) {
    for (std::size_t i = thread; i < parents.size(); i += kThreads) {
      roots[i] = find_root<Shared>(parents.data(), static_cast<std::int32_t>(i));
      if (const auto held = Shared::load(&parents[i]); held < 0)
        propose(&best, key_of(~held, roots[i]));
    }
  });
  for (std::size_t i = 0; i < parents.size(); ++i) {
    if (roots[i] != expected.root[i]) fail(name, "root", i);
    if (expected.root[i] == static_cast<std::int32_t>(i) && ~parents[i] != expected.size[i])
      fail(name, "size", i);
  }
  const auto largest =
      std::max_element(expected.size.begin(), expected.size.end()) - expected.size.begin();
  if (root_of(best) != largest) fail(name, "largest", largest);
}

void random_graphs() {
  std::mt19937 random(1);
  for (int round = 0; round < 40; ++round) {
    const int elements = 1 + static_cast<int>(random() % 3000);
    std::vector<std::int32_t> weights(elements);
    for (auto& weight : weights)
      weight = static_cast<std::int32_t>(random() % 4);  // 0: counted later, as on CUDA
    std::vector<Edge> edges(1 + random() % (2 * elements));
    for (auto& [a, b] : edges) a = random() % elements, b = random() % elements;
    check("random graph", weights, edges);
  }
}

// Long paths, joined from both ends, in order and out of order; and a star, whose centre all
// threads join.
void adversarial_graphs() {
  std::mt19937 random(2);
  const std::int32_t elements = 20000;
  const std::vector<std::int32_t> weights(elements, 1);
  std::vector<Edge> edges;
  for (std::int32_t i = 1; i < elements; ++i) edges.emplace_back(i, i - 1);
  check("path", weights, edges);
  std::reverse(edges.begin(), edges.end());
  check("path, backwards", weights, edges);
  std::shuffle(edges.begin(), edges.end(), random);
  check("path, shuffled", weights, edges);
  edges.clear();
  for (std::int32_t i = 0; i + 1 < elements; ++i) edges.emplace_back(i, elements - 1);
  check("star", weights, edges);
  edges.clear();
  for (std::int32_t i = 0; i < elements / 2; ++i) edges.emplace_back(i, i + elements / 2);
  check("pairs, all of one size", weights, edges);
}

// Joins voxels by their contacts, as the kernels do.
void grids() {
  std::mt19937 random(3);
  for (int round = 0; round < 30; ++round) {
    const int rank = 1 + round % 3;
    const Grid grid{5 + static_cast<int>(random() % 12), 1 + static_cast<int>(random() % 12),
                    1 + static_cast<int>(random() % 25), rank};
    std::vector<std::uint8_t> labels(grid.voxels());
    for (auto& label : labels) label = random() % 5 < 2 ? 0 : 1 + random() % 2;
    std::vector<Edge> edges;
    for (std::int32_t voxel = 0; voxel < grid.voxels(); ++voxel) {
      const int x = voxel / grid.plane(), y = voxel % grid.plane() / grid.z, z = voxel % grid.z;
      for (int dx = -1; dx <= 1; ++dx)
        for (int dy = -1; dy <= 1; ++dy)
          for (int dz = -1; dz <= 1; ++dz) {
            const int ox = x + dx, oy = y + dy, oz = z + dz;
            if (ox < 0 || oy < 0 || oz < 0 || ox >= grid.x || oy >= grid.y || oz >= grid.z)
              continue;
            const std::int32_t other = (ox * grid.y + oy) * grid.z + oz;
            if (other >= voxel || std::abs(dx) + std::abs(dy) + std::abs(dz) > rank) continue;
            if (labels[voxel] != 0 && labels[voxel] == labels[other])
              edges.emplace_back(voxel, other);
          }
    }
    const std::vector<std::int32_t> weights(labels.size(), 1);
    check("grid", weights, edges);

    const Expected expected(weights, edges);
    std::vector<std::int32_t> parents(labels.size(), ~1);
    on_threads([&](int thread) {
      for (std::int32_t voxel = thread; voxel < grid.voxels(); voxel += kThreads) {
        if (!is_foreground(labels[voxel], 3)) continue;
        const int z = voxel % grid.z, row = voxel / grid.z;
        const auto join = [&](std::int32_t other) { unite<Shared>(parents.data(), voxel, other); };
        if (z > 0 && labels[voxel - 1] == labels[voxel]) join(voxel - 1);
        for_each_contact(labels.data(), grid, row / grid.y, row % grid.y, z, join);
      }
    });
    for (std::int32_t voxel = 0; voxel < grid.voxels(); ++voxel)
      if (find_root<Shared>(parents.data(), voxel) != expected.root[voxel])
        fail("contacts", "root", voxel);
  }
}

}  // namespace

int main() {
  random_graphs();
  adversarial_graphs();
  grids();
  std::puts("union_find_race: all roots and sizes are those of one thread");
}
