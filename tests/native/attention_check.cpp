// Paged attention beside its definition in double precision, for every set of kernels that this processor has: random
// shapes, types and masks, with what lies in hidden cells poisoned. `make check-native` runs it under sanitizers.
//
//   attention_check [CASES]
//
// Prints each case that is wrong, then "N passed, N failed"; exits 1 where one failed.
#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>

using namespace paged;

namespace {

constexpr uint16_t HIDDEN = 0xFC00;
constexpr float NONE = std::numeric_limits<float>::quiet_NaN();

struct Shape {
    int rows, cells, kv_heads, group, key_size, value_size, threads;
    Type type;
    float softcap, max_bias;
    bool sinks, biased, broken;  // broken: the first row sees a cell that holds no numbers
};

std::mt19937 source(1);

int pick(int least, int most) { return std::uniform_int_distribution<int>(least, most)(source); }
template <class T> T one_of(std::initializer_list<T> values) { return values.begin()[pick(0, int(values.size()) - 1)]; }
float normal() { return std::normal_distribution<float>()(source); }

float from_half(uint16_t half) {
    const int exponent = half >> 10 & 31, fraction = half & 1023;
    const float size = exponent == 31 ? (fraction ? NONE : INFINITY)
                                      : std::ldexp(float(exponent ? 1024 + fraction : fraction), std::max(exponent, 1) - 25);
    return half & 0x8000 ? -size : size;
}

uint16_t to_half(float x) {
    if (!std::isfinite(x)) return std::isnan(x) ? 0x7E00 : x > 0 ? 0x7C00 : 0xFC00;
    const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    int exponent = 0;
    const float fraction = std::frexp(std::fabs(x), &exponent);  // [0.5, 1)
    if (exponent < -13) return sign | uint16_t(std::lrint(std::ldexp(std::fabs(x), 24)));
    return sign | uint16_t(((exponent + 13) << 10) + std::lrint(std::ldexp(fraction, 11)));  // the hidden bit adds one
}

// Rows of a cache in one of its types, and what they hold.
struct Cache {
    Type type;
    int size;  // elements a row
    std::vector<char> bytes;
    std::vector<float> values;

    Cache(Type type, int cells, int size) : type(type), size(size), bytes(cells * row()), values(size_t(cells) * size) {
        for (size_t i = 0; i < values.size(); i += 32) {
            float block[32];
            for (float & x : block) x = normal();
            set(i, block, 0.05f);
        }
    }

    size_t row() const { return type == Type::Q8_0 ? size_t(size) / 32 * 34 : size_t(size) * (type == Type::F32 ? 4 : 2); }

    // 32 elements; a Q8_0 block gets this scale.
    void set(size_t at, const float * block, float scale) {
        const uint16_t half = to_half(scale);
        char * to = bytes.data() + (type == Type::Q8_0 ? at / 32 * 34 : at * (type == Type::F32 ? 4 : 2));
        if (type == Type::Q8_0) std::memcpy(to, &half, 2);
        for (int i = 0; i < 32; i++) {
            const float x = block[i];
            uint32_t bits;
            std::memcpy(&bits, &x, 4);
            const uint16_t as_half = to_half(x), brain = uint16_t(bits >> 16);
            const int8_t code = int8_t(std::isfinite(x) ? std::clamp(std::lrint(x / scale), -127L, 127L) : 1);
            const uint32_t widened = uint32_t(brain) << 16;
            float & value = values[at + i];
            if (type == Type::F32) std::memcpy(to + 4 * i, &x, 4), value = x;
            if (type == Type::F16) std::memcpy(to + 2 * i, &as_half, 2), value = from_half(as_half);
            if (type == Type::BF16) std::memcpy(to + 2 * i, &brain, 2), std::memcpy(&value, &widened, 4);
            if (type == Type::Q8_0) to[2 + i] = code, value = float(code) * from_half(half);
        }
    }

    void spoil(int cell, float with) {
        float block[32];
        std::fill(block, block + 32, with);
        for (int i = 0; i < size; i += 32) set(size_t(cell) * size + i, block, with);
    }
};

struct Case {
    Shape s;
    Cache k, v;
    std::vector<float> q, sinks;
    std::vector<uint16_t> mask;

    explicit Case(const Shape & s)
        : s(s), k(s.type, s.cells, s.kv_heads * s.key_size), v(s.type, s.cells, s.kv_heads * s.value_size),
          q(size_t(s.rows) * heads() * s.key_size), sinks(heads()), mask(size_t(s.rows) * s.cells, HIDDEN) {
        for (float & x : q) x = 2 * normal();
        for (float & x : sinks) x = normal();
        for (int r = 0; r < s.rows; r++)
            for (int runs = pick(0, 3); runs > 0 && s.cells; runs--)
                for (int c = pick(0, s.cells - 1), end = pick(c, s.cells); c < end; c++) mask[at(r, c)] = visible(r, c);
        for (int c = 0; c < s.cells; c++) {
            if (s.broken && s.rows && c % 70 == 3) {  // seen by none but the first row
                for (int r = 0; r < s.rows; r++) mask[at(r, c)] = r ? HIDDEN : 0;
                k.spoil(c, one_of({NONE, 1.0f})), v.spoil(c, one_of({NONE, INFINITY}));
            } else if (pick(0, 9) == 0) {
                for (int r = 0; r < s.rows; r++) mask[at(r, c)] = HIDDEN;
                k.spoil(c, one_of({NONE, INFINITY, 3e38f})), v.spoil(c, one_of({NONE, -INFINITY, 3e38f}));
            }
        }
    }

    int heads() const { return s.kv_heads * s.group; }
    size_t at(int row, int cell) const { return size_t(row) * s.cells + cell; }
    uint16_t visible(int row, int cell) const { return s.biased ? to_half(-0.125f * float((row + cell) % 50)) : 0; }

    std::vector<float> compute(const Kernels & kernels) const {
        std::vector<float> out(size_t(s.rows) * heads() * s.value_size, NONE);
        Attention a = {};
        a.q = {(const char *) q.data(), heads() * s.key_size * sizeof(float), s.key_size * sizeof(float), Type::F32};
        a.k = {k.bytes.data(), k.row(), k.row() / s.kv_heads, s.type};
        a.v = {v.bytes.data(), v.row(), v.row() / s.kv_heads, s.type};
        a.out = out.data();
        a.mask = mask.data(), a.mask_row = s.cells;
        a.sinks = s.sinks ? sinks.data() : nullptr;
        a.rows = s.rows, a.heads = heads(), a.kv_heads = s.kv_heads, a.key_size = s.key_size, a.value_size = s.value_size;
        a.scale = scale(), a.softcap = s.softcap, a.max_bias = s.max_bias;
        Plan plan;
        std::vector<State> states;
        build_plan(kernels, mask.data(), s.cells, s.rows, s.cells, s.threads, plan);
        attend(kernels, a, plan, s.threads, states);
        return out;
    }

    float scale() const { return 1 / std::sqrt(float(s.key_size)); }

    std::vector<double> define(int row, int head) const {
        const int kv_head = head / s.group;
        std::vector<double> scores(s.cells, -INFINITY), out(s.value_size);
        double top = s.sinks ? double(sinks[head]) : -INFINITY;
        for (int c = 0; c < s.cells; c++) {
            if (mask[at(row, c)] == HIDDEN) continue;
            const float * query = &q[(size_t(row) * heads() + head) * s.key_size];
            const float * key = &k.values[size_t(c) * k.size + kv_head * s.key_size];
            double score = 0;
            for (int i = 0; i < s.key_size; i++) score += double(query[i]) * key[i];
            score *= scale();
            if (s.softcap != 0) score = s.softcap * std::tanh(score / s.softcap);
            scores[c] = score + alibi_slope(head, heads(), s.max_bias) * from_half(mask[at(row, c)]);
            top = std::max(top, scores[c]);
        }
        double sum = s.sinks ? std::exp(sinks[head] - top) : 0;
        for (int c = 0; c < s.cells; c++) {
            if (mask[at(row, c)] == HIDDEN) continue;
            const double weight = std::exp(scores[c] - top);
            sum += weight;
            for (int i = 0; i < s.value_size; i++) out[i] += weight * v.values[size_t(c) * v.size + kv_head * s.value_size + i];
        }
        for (double & x : out) x = sum == 0 ? 0 : x / sum;
        return out;
    }

    // The largest error, of values whose deviation is 1; infinite where one is a number and the other is none.
    double error(const std::vector<float> & found) const {
        double apart = 0;
        for (int r = 0; r < s.rows; r++)
            for (int h = 0; h < heads(); h++) {
                const std::vector<double> right = define(r, h);
                for (int i = 0; i < s.value_size; i++) {
                    const double x = found[(size_t(r) * heads() + h) * s.value_size + i];
                    if (std::isfinite(x) != std::isfinite(right[i])) return INFINITY;
                    if (std::isfinite(x)) apart = std::max(apart, std::fabs(x - right[i]));
                }
            }
        return apart;
    }
};

Shape random_shape() {
    const bool q8 = pick(0, 3) == 0;
    Shape s = {};
    s.type = q8 ? Type::Q8_0 : one_of({Type::F32, Type::F16, Type::BF16});
    s.rows = one_of({0, 1, 1, 2, 3, 8, 25, 70});
    s.cells = PAGE_CELLS * one_of({0, 1, 2, 5, 9, 20});
    s.kv_heads = pick(1, 3), s.group = one_of({1, 2, 3, 4, 5, 8, 12, 32});
    s.key_size = 32 * pick(1, 4), s.value_size = pick(0, 2) ? s.key_size : 32 * pick(1, 4);
    s.threads = one_of({1, 1, 2, 5});
    s.softcap = one_of({0.0f, 0.0f, 5.0f});
    s.biased = pick(0, 3) == 0, s.max_bias = s.biased ? one_of({0.0f, 8.0f}) : 0.0f;
    s.sinks = pick(0, 3) == 0, s.broken = !q8 && pick(0, 3) == 0;
    return s;
}

}  // namespace

int main(int argc, char ** argv) {
    const int cases = argc > 1 ? std::atoi(argv[1]) : 200;
    int passed = 0, failed = 0;
    for (int number = 0; number < cases; number++) {
        const Case one(random_shape());
        const Shape & s = one.s;
        for (const Kernels * each : kernels()) {
            const double apart = one.error(one.compute(*each));
            apart < 4e-3 ? passed++ : failed++;
            if (!(apart < 4e-3))
                std::printf("case %d, %s, off by %g: %d rows, %d cells, %d x %d heads, keys of %d, values of %d, type %d, "
                            "%d threads, soft cap %g, ALiBi %g, sinks %d, biased %d, broken %d\n",
                            number, each->name, apart, s.rows, s.cells, s.kv_heads, s.group, s.key_size, s.value_size, int(s.type),
                            s.threads, s.softcap, s.max_bias, s.sinks, s.biased, s.broken);
        }
    }
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed || !passed;
}
