// Search of a flattened HNSW graph (Malkov and Yashunin, 2018, algorithms 2 and 5) over int8 rows.
//
// The graph is the bytes that appliance/knowledge/index/hnsw.py describes, used where they lie:
//     magic 8, u32 rows, u32 levels, u32 entry, then for each level from 0 up
//     u32 nodes, u32 links, u32 node[nodes] (not at level 0), u32 start[nodes + 1], u32 neighbour[links]
// Nodes and neighbours are positions in their level's list of rows; `check_graph` proves that all of them exist, and
// `search_graph` may be given nothing else.

#include <cstring>

#include "dot_i8.h"

namespace {

constexpr size_t HEADER_BYTES = 20;
constexpr uint32_t MOST_LEVELS = 64;
constexpr uint32_t MOST_LINKS = 4096;  // of one node
constexpr uint32_t LINE_LINKS = 16;    // in a line of the cache
constexpr char MAGIC[8] = {'G', 'R', 'A', 'P', 'H', 2, 0, 0};

enum Fault : int64_t { SOUND = 0, OTHER_FORMAT = 1, OTHER_SIZE = 2, IMPOSSIBLE = 3 };

struct Level {
    uint32_t nodes;
    uint32_t links;
    const uint32_t* rows;  // null at level 0, where a position is a row
    const uint32_t* start;
    const uint32_t* neighbour;
    const uint32_t* end;

    uint32_t row(uint32_t position) const { return rows == nullptr ? position : rows[position]; }
};

struct Header {
    char magic[8];
    uint32_t rows, levels, entry;
};

Level level_at(const uint32_t* words, bool lowest) {
    Level level{words[0], words[1], nullptr, words + 2, nullptr, nullptr};
    if (!lowest) {
        level.rows = level.start;
        level.start += level.nodes;
    }
    level.neighbour = level.start + level.nodes + 1;
    level.end = level.neighbour + level.links;
    return level;
}

bool sound_level(const Level& level, const Level* below) {
    uint32_t bad = level.start[0] != 0 || level.start[level.nodes] != level.links;
    for (uint32_t i = 0; i < level.nodes; i++)
        bad |= (level.start[i] > level.start[i + 1]) | (level.start[i + 1] - level.start[i] > MOST_LINKS);
    for (uint32_t i = 0; i < level.links; i++) bad |= level.neighbour[i] >= level.nodes;
    if (bad) return false;
    if (below == nullptr) return true;
    // ascending, and each of them also in the level below
    uint32_t at = 0;
    for (uint32_t i = 0; i < level.nodes; i++) {
        if (i > 0 && level.rows[i] <= level.rows[i - 1]) return false;
        if (below->rows == nullptr) {
            if (level.rows[i] >= below->nodes) return false;
            continue;
        }
        while (at < below->nodes && below->rows[at] < level.rows[i]) at++;
        if (at == below->nodes || below->rows[at] != level.rows[i]) return false;
    }
    return true;
}

// What one thread searches with; grows to the largest graph it has seen.
struct Scratch {
    std::vector<uint8_t> seen;  // by row, the epoch that saw it last
    uint8_t epoch = 0;
    std::vector<int8_t> query;
    std::vector<i8::Hit> frontier, best;
    std::vector<uint32_t> block;
    std::vector<int32_t> products;

    void begin(uint64_t rows, uint64_t dim) {
        if (seen.size() < rows) seen.resize(rows, 0);
        if (++epoch == 0) {
            std::fill(seen.begin(), seen.end(), uint8_t(0));
            epoch = 1;
        }
        query.resize(dim);
        block.resize(MOST_LINKS);
        products.resize(MOST_LINKS);
        frontier.clear();
        best.clear();
    }
};

// Whether a is worse: a heap by this order keeps the best in front.
struct Worse {
    bool operator()(const i8::Hit& a, const i8::Hit& b) const { return i8::better(b, a); }
};
constexpr Worse worse{};

struct Search {
    const int8_t* vectors;
    const float* scales;
    uint64_t dim;
    const uint64_t* allowed;
    i8::Dots dots;
    Scratch& scratch;
    uint64_t computed = 0;

    void fetch(uint32_t row) const {
        i8::prefetch(vectors + row * dim, dim);
        __builtin_prefetch(scales + row);
    }

    // Products of the rows in scratch.block[0, count), into scratch.products.
    void compute(size_t count) {
        dots(scratch.query.data(), vectors, dim, scratch.block.data(), count, scratch.products.data());
        computed += count;
    }

    float score(size_t i) const { return scales[scratch.block[i]] * float(scratch.products[i]); }

    bool allows(uint32_t row) const { return allowed == nullptr || (allowed[row / 64] >> (row % 64) & 1) != 0; }

    // The node of an upper level that no neighbour is better than, from `position` on.
    uint32_t descend(const Level& level, uint32_t position) {
        scratch.block[0] = level.row(position);
        compute(1);
        float best = score(0);
        for (bool moved = true; moved;) {
            moved = false;
            const uint32_t first = level.start[position], count = level.start[position + 1] - first;
            for (uint32_t i = 0; i < count; i++) {
                scratch.block[i] = level.row(level.neighbour[first + i]);
                fetch(scratch.block[i]);
            }
            compute(count);
            for (uint32_t i = 0; i < count; i++)
                if (score(i) > best) {
                    best = score(i);
                    position = level.neighbour[first + i];
                    moved = true;
                }
        }
        return position;
    }

    // The best `width` allowed rows around `entry`, into scratch.best; ends early once `budget` rows were computed.
    void walk(const Level& level, uint32_t entry, uint64_t width, uint64_t budget) {
        auto& frontier = scratch.frontier;
        auto& best = scratch.best;
        // a store of a byte may be of anything, so that vectors' own addresses would be read again after each
        uint8_t* const seen = scratch.seen.data();
        uint32_t* const block = scratch.block.data();
        const uint8_t epoch = scratch.epoch;
        block[0] = entry;
        seen[entry] = epoch;
        size_t count = 1;
        for (;;) {
            compute(count);
            for (size_t i = 0; i < count; i++) {
                const i8::Hit hit{score(i), block[i]};
                if (best.size() >= width && !i8::better(hit, best.front())) continue;
                __builtin_prefetch(level.start + hit.row);
                frontier.push_back(hit);
                std::push_heap(frontier.begin(), frontier.end(), worse);
                if (!allows(hit.row)) continue;
                best.push_back(hit);
                std::push_heap(best.begin(), best.end(), i8::better);
                if (best.size() > width) {
                    std::pop_heap(best.begin(), best.end(), i8::better);
                    best.pop_back();
                }
            }
            for (count = 0; count == 0;) {
                if (frontier.empty() || computed >= budget) return;
                const i8::Hit next = frontier.front();
                if (best.size() >= width && i8::better(best.front(), next)) return;
                const uint32_t first = level.start[next.row], last = level.start[next.row + 1];
                for (uint32_t at = first; at < last; at += LINE_LINKS) __builtin_prefetch(level.neighbour + at);
                std::pop_heap(frontier.begin(), frontier.end(), worse);
                frontier.pop_back();
                for (uint32_t at = first; at < last; at++) {
                    const uint32_t row = level.neighbour[at];
                    if (seen[row] == epoch) continue;
                    seen[row] = epoch;
                    block[count++] = row;
                    fetch(row);
                }
                if (!frontier.empty()) __builtin_prefetch(level.neighbour + level.start[frontier.front().row]);
            }
        }
    }
};

}  // namespace

extern "C" {

// 0 where the graph is sound and of that many rows; 1 another format, 2 sizes that don't add up, 3 an impossible link.
// graph: at a multiple of 4.
__attribute__((visibility("default"))) int64_t check_graph(const uint8_t* graph, uint64_t bytes, uint64_t rows) {
    Header header;
    if (bytes < HEADER_BYTES) return OTHER_SIZE;
    std::memcpy(&header, graph, HEADER_BYTES);
    if (std::memcmp(header.magic, MAGIC, 8) != 0) return OTHER_FORMAT;
    if (header.rows != rows || bytes % 4 != 0) return OTHER_SIZE;
    if (header.levels == 0 || header.levels > MOST_LEVELS) return IMPOSSIBLE;
    const uint32_t* words = reinterpret_cast<const uint32_t*>(graph + HEADER_BYTES);
    uint64_t left = (bytes - HEADER_BYTES) / 4;
    Level below{}, level{};
    for (uint32_t number = 0; number < header.levels; number++) {
        if (left < 2) return OTHER_SIZE;
        const uint64_t nodes = words[0], links = words[1], needed = 2 + (number ? 2 : 1) * nodes + 1 + links;
        if (left < needed || (number == 0 && nodes != rows)) return OTHER_SIZE;
        level = level_at(words, number == 0);
        if (nodes == 0 || !sound_level(level, number ? &below : nullptr)) return IMPOSSIBLE;
        below = level;
        words = level.end;
        left -= needed;
    }
    if (left != 0) return OTHER_SIZE;
    return header.entry < level.nodes ? SOUND : IMPOSSIBLE;
}

// As scan_i8, of the allowed rows that a walk of the graph meets.
//
// width: how many the walk holds while it looks for better ones (ef); budget: about how many rows it may compare before
// it gives up with what it has.
__attribute__((visibility("default"))) int64_t search_graph(const i8::Rows* of, const uint64_t* allowed,
                                                            const float* query, uint64_t k, uint64_t width,
                                                            uint64_t budget, uint32_t* out_rows, float* out_scores,
                                                            int32_t path) {
    static thread_local Scratch scratch;
    const i8::Dots dots = i8::choose(path);
    if (dots == nullptr) return -1;
    scratch.begin(of->rows, of->dim);
    float query_scale;
    if (!i8::quantize(query, of->dim, scratch.query.data(), &query_scale)) return -2;

    Header header;
    std::memcpy(&header, of->graph, HEADER_BYTES);
    Level levels[MOST_LEVELS];
    const uint32_t* words = reinterpret_cast<const uint32_t*>(of->graph + HEADER_BYTES);
    for (uint32_t number = 0; number < header.levels; number++) {
        levels[number] = level_at(words, number == 0);
        words = levels[number].end;
    }
    Search search{of->vectors, of->scales, of->dim, allowed, dots, scratch};
    uint32_t position = header.entry;
    for (uint32_t number = header.levels - 1; number > 0; number--) {
        position = search.descend(levels[number], position);
        const uint32_t row = levels[number].row(position);
        const Level& below = levels[number - 1];
        position = below.rows == nullptr ? row
                                         : uint32_t(std::lower_bound(below.rows, below.rows + below.nodes, row) - below.rows);
    }
    if (width == 0) return 0;
    search.walk(levels[0], position, width, budget);

    std::sort_heap(scratch.best.begin(), scratch.best.end(), i8::better);
    i8::contenders(scratch.best, k, of->scales, query_scale);
    return i8::give(scratch.best, query_scale, out_rows, out_scores);
}

}
