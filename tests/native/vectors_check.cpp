// Compares every path of the vector search that this processor has with the portable one, and walks damaged graphs that
// check_graph lets pass. Prints the paths; exits 1 at the first difference.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "dot_i8.h"

extern "C" {
int64_t allowed_bits(const uint8_t*, uint64_t, uint64_t*, int32_t);
int64_t scan_i8(const i8::Rows*, const uint64_t*, const float*, uint64_t, uint64_t, uint32_t*, float*, int32_t);
int64_t check_graph(const uint8_t*, uint64_t, uint64_t);
int64_t search_graph(const i8::Rows*, const uint64_t*, const float*, uint64_t, uint64_t, uint64_t, uint32_t*, float*,
                     int32_t);
int64_t rescore_f16(const uint32_t*, const uint16_t*, uint64_t, uint64_t, const float*, uint64_t, uint32_t*, float*,
                    int32_t);
}

namespace {

std::mt19937 draw(1);

uint32_t below(uint32_t end) { return uint32_t(draw() % end); }

// Level 0 with some links a node, and every fourth node again on level 1.
std::vector<uint32_t> random_graph(uint32_t rows) {
    std::vector<uint32_t> words(5);
    std::memcpy(words.data(), "GRAPH\2\0\0", 8);
    const auto level = [&](uint32_t nodes, bool lowest) {
        std::vector<uint32_t> start{0}, links;
        for (uint32_t i = 0; i < nodes; i++) {
            for (uint32_t count = below(9); count > 0; count--) links.push_back(below(nodes));
            links.push_back((i + 1) % nodes);
            start.push_back(uint32_t(links.size()));
        }
        words.push_back(nodes);
        words.push_back(uint32_t(links.size()));
        for (uint32_t i = 0; !lowest && i < nodes; i++) words.push_back(4 * i);
        words.insert(words.end(), start.begin(), start.end());
        words.insert(words.end(), links.begin(), links.end());
    };
    level(rows, true);
    level((rows + 3) / 4, false);
    words[2] = rows, words[3] = 2, words[4] = below((rows + 3) / 4);
    return words;
}

struct Answer {
    int64_t count;
    std::vector<uint32_t> rows;
    std::vector<float> scores;

    explicit Answer(size_t room) : count(0), rows(room), scores(room) {}

    bool operator==(const Answer& other) const {
        const size_t size = size_t(count);
        return count == other.count && std::memcmp(rows.data(), other.rows.data(), 4 * size) == 0 &&
               std::memcmp(scores.data(), other.scores.data(), 4 * size) == 0;
    }
};

void require(bool same, const char* what, int path, size_t dim) {
    if (same) return;
    std::printf("%s differs on path %d at dim %zu\n", what, path, dim);
    std::exit(1);
}

void check_shape(const std::vector<int>& paths, uint32_t rows, size_t dim) {
    // exactly as large as they are, so that a sanitizer sees a read past their ends
    std::vector<int8_t> vectors(rows * dim);
    std::vector<float> scales(rows), query(dim);
    std::vector<uint8_t> mask(rows);
    std::vector<uint16_t> halves(rows * dim);
    std::vector<uint32_t> numbers(rows);
    for (auto& code : vectors) code = int8_t(draw());
    for (auto& scale : scales) scale = float(below(5)) / 1000;
    for (auto& value : query) value = float(int(below(2001)) - 1000) / 1000;
    for (auto& allowed : mask) allowed = below(3) == 0;
    for (auto& half : halves) half = uint16_t(draw());
    for (uint32_t i = 0; i < rows; i++) numbers[i] = i;
    auto graph = random_graph(rows);
    const auto* bytes = reinterpret_cast<const uint8_t*>(graph.data());
    require(check_graph(bytes, 4 * graph.size(), rows) == 0, "a sound graph", 0, dim);
    const i8::Rows searched{vectors.data(), scales.data(), bytes, rows, dim};
    std::vector<uint64_t> bits((rows + 63) / 64);
    allowed_bits(mask.data(), rows, bits.data(), i8::PORTABLE);
    for (const uint64_t* allowed : {static_cast<const uint64_t*>(nullptr), static_cast<const uint64_t*>(bits.data())}) {
        Answer scanned(rows), walked(rows), ranked(rows);
        for (const int path : paths) {
            Answer scan(rows), walk(rows), rank(rows);
            scan.count = scan_i8(&searched, allowed, query.data(), 7, rows / 2 + 1, scan.rows.data(), scan.scores.data(),
                                 path);
            walk.count = search_graph(&searched, allowed, query.data(), 7, rows / 2 + 1, 1 << 20, walk.rows.data(),
                                      walk.scores.data(), path);
            rank.count = rescore_f16(numbers.data(), halves.data(), rows, dim, query.data(), rows, rank.rows.data(),
                                     rank.scores.data(), path == i8::PORTABLE ? i8::PORTABLE : i8::BEST);
            if (path == i8::PORTABLE) scanned = scan, walked = walk, ranked = rank;
            require(scan == scanned, "scan", path, dim);
            require(walk == walked, "walk", path, dim);
            require(rank == ranked, "rescore", path, dim);
        }
    }
    for (int i = 0; i < 200; i++) {
        auto damaged = graph;
        damaged[below(uint32_t(damaged.size()))] = below(2) ? below(2 * rows) : uint32_t(draw());
        const auto* at = reinterpret_cast<const uint8_t*>(damaged.data());
        Answer walk(rows);
        const i8::Rows changed{vectors.data(), scales.data(), at, rows, dim};
        if (check_graph(at, 4 * damaged.size(), rows) == 0)
            search_graph(&changed, nullptr, query.data(), 7, rows, 1 << 20, walk.rows.data(), walk.scores.data(),
                         i8::BEST);
        const size_t kept = below(uint32_t(graph.size()));
        std::vector<uint32_t> cut(graph.begin(), graph.begin() + std::ptrdiff_t(kept));
        const auto* bytes_cut = reinterpret_cast<const uint8_t*>(cut.data());
        require(check_graph(bytes_cut, 4 * kept, rows) != 0, "a graph that is cut", 0, dim);
    }
}

void check_filters(const std::vector<int>& paths, uint32_t rows, uint32_t one_in) {
    std::vector<uint8_t> mask(rows);
    for (auto& allowed : mask) allowed = below(one_in) == 0 ? uint8_t(1 + below(255)) : 0;
    uint32_t ones = 0;
    for (const auto allowed : mask) ones += allowed != 0;
    for (const int path : paths) {
        std::vector<uint64_t> bits((rows + 63) / 64);
        require(allowed_bits(mask.data(), rows, bits.data(), path) == ones, "the count of a filter", path, rows);
        for (uint32_t row = 0; row < 64 * bits.size(); row++) {
            const bool allowed = row < rows && mask[row] != 0;
            require((bits[row / 64] >> (row % 64) & 1) == uint64_t(allowed), "a filter", path, rows);
        }
    }
}

}  // namespace

int main() {
    std::vector<int> paths;
    for (const int path : {i8::PORTABLE, i8::AVX2, i8::VNNI, i8::NEON, i8::NEON_DOT})
        if (i8::choose(path) != nullptr) paths.push_back(path);
    for (const uint32_t rows : {1U, 2U, 5U, 33U, 100U})
        for (const size_t dim : {1, 7, 8, 15, 16, 17, 31, 32, 63, 64, 65, 127, 128, 130, 384}) check_shape(paths, rows, dim);
    for (uint32_t rows = 0; rows < 200; rows++)
        for (const uint32_t one_in : {1U, 2U, 100U}) check_filters(paths, rows, one_in);
    std::printf("the same on paths");
    for (const int path : paths) std::printf(" %d", path);
    std::printf("\n");
}
