// The next token from one row of logits: penalties, top-k, top-p, min-p, temperature, a draw by (seed, position, token).
//
// The order and meaning are llama.cpp's. The draw is Gumbel's: the token with the greatest logit / temperature + noise,
// where the noise of a token at a position comes from Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy
// as 1, 2, 3", 2011). So the most likely of what is left over by a mask is the masked draw itself.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define BEST_HERE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define BEST_HERE
#endif

namespace {

constexpr int32_t BLOCK = 32;  // tokens a mask word; looked at together
constexpr float LEAST = -std::numeric_limits<float>::infinity();

struct Candidate {
    float logit;
    int32_t token;
};

// The order of all selections: by logit, equal ones by token.
bool before(const Candidate& a, const Candidate& b) { return a.logit > b.logit || (a.logit == b.logit && a.token < b.token); }

// What a thread works in; it grows to the vocabulary once.
struct Scratch {
    std::vector<Candidate> candidates;
    std::vector<double> weights;
    std::vector<float> penalized;
};

BEST_HERE int any_above(const float* logits, int32_t count, float threshold) {
    int found = 0;
    for (int32_t i = 0; i < count; i++) found |= logits[i] > threshold;
    return found;
}

// The greatest logit that is a number; LEAST where there is none.
BEST_HERE float greatest(const float* logits, int32_t count) {
    float best[16];
    std::fill(best, best + 16, LEAST);
    int32_t i = 0;
    for (; i + 16 <= count; i += 16)
        for (int32_t j = 0; j < 16; j++) best[j] = logits[i + j] > best[j] ? logits[i + j] : best[j];
    for (; i < count; i++) best[0] = logits[i] > best[0] ? logits[i] : best[0];
    return *std::max_element(best, best + 16);
}

bool is_allowed(const uint32_t* allowed, int32_t token) { return !allowed || (allowed[token / BLOCK] >> (token % BLOCK) & 1); }

// The tokens that are allowed and above the threshold, in the order of their ids, of which `keep` best are wanted: the
// threshold rises to the worst of these as more are found. NaN and -inf are above nothing; +inf counts as FLT_MAX.
size_t gather(const float* logits, int32_t count, const uint32_t* allowed, size_t keep, float threshold, Candidate* out) {
    size_t found = 0;
    for (int32_t start = 0; start < count; start += BLOCK) {
        const int32_t end = std::min(start + BLOCK, count);
        if (allowed && !allowed[start / BLOCK]) continue;
        if (!any_above(logits + start, end - start, threshold)) continue;
        for (int32_t i = start; i < end; i++) {
            if (!(logits[i] > threshold) || !is_allowed(allowed, i)) continue;
            out[found++] = {std::min(logits[i], FLT_MAX), i};
            if (found / 2 < keep) continue;
            std::nth_element(out, out + keep - 1, out + found, before);
            found = keep;
            threshold = out[keep - 1].logit;
        }
    }
    if (found > keep) {
        std::nth_element(out, out + keep - 1, out + found, before);
        found = keep;
    }
    return found;
}

double best_logit(const Candidate* candidates, size_t count) {
    float best = LEAST;
    for (size_t i = 0; i < count; i++) best = std::max(best, candidates[i].logit);
    return best;
}

// e^x for x <= 0 to about 1e-14, in a form that compilers turn into vector instructions: x = k ln 2 + r, |r| <= ln 2 / 2,
// then Taylor's series. Below -700, and for what is no number, it is as good as 0.
inline double weight(double x) {
    constexpr double round = 0x1.8p52;
    x = x > -700 ? x : -700;
    const double shifted = x * 1.4426950408889634 + round, k = shifted - round;
    const double r = (x - k * 0x1.62e42fefa39efp-1) - k * 0x1.abc9e3b39803fp-56;
    double series = 1 + r * (1.0 / 13);
    series = 1 + series * r * (1.0 / 12);
    series = 1 + series * r * (1.0 / 11);
    series = 1 + series * r * (1.0 / 10);
    series = 1 + series * r * (1.0 / 9);
    series = 1 + series * r * (1.0 / 8);
    series = 1 + series * r * (1.0 / 7);
    series = 1 + series * r * (1.0 / 6);
    series = 1 + series * r * (1.0 / 5);
    series = 1 + series * r * (1.0 / 4);
    series = 1 + series * r * (1.0 / 3);
    series = 1 + series * r * (1.0 / 2);
    series = 1 + series * r;
    uint64_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 1023) << 52;
    double scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return series * scale;
}

// Makes each value x, a logit less the best one, its weight e^x; returns their sum.
BEST_HERE double weigh(double* values, size_t count) {
    for (size_t i = 0; i < count; i++) values[i] = weight(values[i]);
    double sums[8] = {};
    size_t i = 0;
    for (; i + 8 <= count; i += 8)
        for (size_t j = 0; j < 8; j++) sums[j] += values[i + j];
    for (; i < count; i++) sums[0] += values[i];
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

double sum_of(const Candidate* from, const Candidate* to, double best) {
    double sum = 0;
    for (; from < to; from++) sum += weight(double(from->logit) - best);
    return sum;
}

// The shortest beginning of the sorted candidates that holds `share` of their weight: first the slice of logits that its end
// lies in, then by halving in there, without a full sort.
size_t keep_share(Candidate* candidates, size_t count, double share, double* weights) {
    constexpr int32_t slices = 512;
    constexpr double a_unit = 16;
    const double best = best_logit(candidates, count);
    for (size_t i = 0; i < count; i++) weights[i] = double(candidates[i].logit) - best;
    double wanted = share * weigh(weights, count), held[slices] = {};
    const auto slice = [&](const Candidate& c) { return int32_t(std::min((best - c.logit) * a_unit, slices - 1.0)); };
    for (size_t i = 0; i < count; i++) held[slice(candidates[i])] += weights[i];
    int32_t last = 0;
    for (; last < slices - 1 && held[last] < wanted; last++) wanted -= held[last];
    Candidate* low = std::partition(candidates, candidates + count, [&](const Candidate& c) { return slice(c) < last; });
    Candidate* high = std::partition(low, candidates + count, [&](const Candidate& c) { return slice(c) == last; });
    while (high - low > 1) {
        Candidate* middle = low + (high - low) / 2;
        std::nth_element(low, middle, high, before);
        const double here = sum_of(low, middle, best);
        if (here >= wanted) {
            high = middle;
        } else {
            wanted -= here;
            low = middle;
        }
    }
    return size_t(high - candidates);
}

size_t keep_likely(Candidate* candidates, size_t count, double ratio) {
    const double least = best_logit(candidates, count) + std::log(ratio);
    return size_t(std::remove_if(candidates, candidates + count, [&](const Candidate& c) { return c.logit < least; }) - candidates);
}

struct Philox {
    uint32_t word[4];
};

Philox philox(uint32_t c0, uint32_t c1, uint32_t key) {
    uint32_t c2 = 0, c3 = 0, k0 = key, k1 = 0;
    for (int round = 0; round < 10; round++) {
        const uint64_t a = uint64_t(0xD2511F53) * c0, b = uint64_t(0xCD9E8D57) * c2;
        c0 = uint32_t(b >> 32) ^ c1 ^ k0;
        c2 = uint32_t(a >> 32) ^ c3 ^ k1;
        c1 = uint32_t(b);
        c3 = uint32_t(a);
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
    return {{c0, c1, c2, c3}};
}

// The candidate that wins the draw among the allowed ones, or -1 where none is.
int32_t draw(const Candidate* candidates, size_t count, const uint32_t* allowed, double temperature, uint32_t seed, uint32_t position) {
    double best = -std::numeric_limits<double>::infinity();
    int32_t chosen = -1;
    uint32_t block = UINT32_MAX;
    Philox random{};
    for (size_t i = 0; i < count; i++) {
        const int32_t token = candidates[i].token;
        if (!is_allowed(allowed, token)) continue;
        if (block != uint32_t(token) / 4) random = philox(block = uint32_t(token) / 4, position, seed);
        const uint32_t x = random.word[token % 4];
        const double level = candidates[i].logit / temperature;
        // -log(-log(u)) <= -log(1 - u) < this: most tokens are out without a logarithm
        const double bound = (33 - (63 - __builtin_clzll((uint64_t(1) << 32) - x))) * M_LN2;
        if (level + bound < best) continue;
        const double score = level - std::log(-std::log((x + 0.5) * 0x1p-32));
        if (score > best || (score == best && token < chosen)) {
            best = score;
            chosen = token;
        }
    }
    return chosen;
}

}  // namespace

extern "C" {

struct Sampling {
    float temperature, top_p, min_p, repeat_penalty, presence_penalty, frequency_penalty;
    int32_t top_k;
    uint32_t seed;
};

}

namespace {

bool penalizes(const Sampling& how) {
    return how.repeat_penalty != 1 || how.presence_penalty != 0 || how.frequency_penalty != 0;
}

// A copy of the logits in which the tokens of the window are made less likely, as often as they are there.
const float* penalize(const float* logits, int32_t count, const Sampling& how, const int32_t* window, int32_t length, Scratch& scratch) {
    scratch.penalized.assign(logits, logits + count);
    for (int32_t i = 0; i < length; i++) {
        const int32_t token = window[i];
        if (token < 0 || token >= count || std::find(window, window + i, token) != window + i) continue;
        float& logit = scratch.penalized[size_t(token)];
        logit = logit <= 0 ? logit * how.repeat_penalty : logit / how.repeat_penalty;
        logit -= float(std::count(window + i, window + length, token)) * how.frequency_penalty + how.presence_penalty;
    }
    return scratch.penalized.data();
}

int32_t likeliest(const float* logits, int32_t count, const uint32_t* allowed, Scratch& scratch) {
    if (!allowed) {
        const float best = greatest(logits, count);
        return best > LEAST ? int32_t(std::find(logits, logits + count, best) - logits) : -1;
    }
    return gather(logits, count, allowed, 1, LEAST, scratch.candidates.data()) ? scratch.candidates[0].token : -1;
}

size_t truncate(const float* logits, int32_t count, const Sampling& how, const uint32_t* allowed, Scratch& scratch) {
    Candidate* const out = scratch.candidates.data();
    const bool all = how.top_k <= 0 || how.top_k >= count;
    float threshold = LEAST;
    if (all && how.top_p >= 1 && how.min_p > 0 && !allowed) {
        // min-p alone: what is far below the best need not be gathered; the exact cut comes after
        const float best = std::min(greatest(logits, count), FLT_MAX);
        threshold = std::nextafter(float(double(best) + std::log(double(how.min_p))), LEAST);
    }
    size_t kept = gather(logits, count, allowed, all ? size_t(count) : size_t(how.top_k), threshold, out);
    if (how.top_p < 1 && kept > 1) kept = keep_share(out, kept, how.top_p, scratch.weights.data());
    if (how.min_p > 0 && kept > 1) kept = keep_likely(out, kept, how.min_p);
    return kept;
}

Scratch& scratch_for(int32_t count) {
    static thread_local Scratch scratch;
    if (scratch.weights.size() < size_t(count)) {
        scratch.candidates.resize(2 * size_t(count));
        scratch.weights.resize(size_t(count));
    }
    return scratch;
}

}  // namespace

extern "C" {

// The token that comes at `position`, or -1 where no allowed token has a logit that is a number above -inf.
//
// logits: float32 [count]; window: the tokens that penalties count, int32 [length]; allowed: one bit a token, lowest
// first, or null for all. A mask picks among what top-k, top-p and min-p have left of all tokens; only where that is none
// do they see the allowed tokens alone. So a draw without the mask that the mask allows is the draw with it.
__attribute__((visibility("default"))) int32_t sample(const float* logits, int32_t count, const Sampling* how, const int32_t* window,
                                                      int32_t length, const uint32_t* allowed, uint32_t position) {
    Scratch& scratch = scratch_for(count);
    if (penalizes(*how)) logits = penalize(logits, count, *how, window, length, scratch);
    if (how->temperature <= 0) return likeliest(logits, count, allowed, scratch);
    Candidate* const out = scratch.candidates.data();
    const size_t kept = truncate(logits, count, *how, nullptr, scratch);
    const int32_t chosen = draw(out, kept, allowed, how->temperature, how->seed, position);
    if (chosen >= 0 || !allowed) return chosen;
    return draw(out, truncate(logits, count, *how, allowed, scratch), allowed, how->temperature, how->seed, position);
}

// Log-probabilities by the logits as they are: of `chosen` into values[0], and of the `top` likeliest after it, best
// first, their tokens into tokens[1...]. Returns how many of these there are (fewer where logits are no numbers).
__attribute__((visibility("default"))) int32_t logprobs(const float* logits, int32_t count, int32_t chosen, int32_t top, int32_t* tokens,
                                                        double* values) {
    Scratch& scratch = scratch_for(count);
    Candidate* const out = scratch.candidates.data();
    const double best = std::min(greatest(logits, count), FLT_MAX);
    for (int32_t i = 0; i < count; i++) scratch.weights[size_t(i)] = double(logits[i] > FLT_MAX ? FLT_MAX : logits[i]) - best;
    const double log_sum = std::log(weigh(scratch.weights.data(), size_t(count)));
    tokens[0] = chosen;
    values[0] = logits[chosen] > LEAST ? std::min(double(logits[chosen]), double(FLT_MAX)) - best - log_sum : -HUGE_VAL;
    const size_t found = top > 0 ? gather(logits, count, nullptr, size_t(top), LEAST, out) : 0;
    std::sort(out, out + found, before);
    for (size_t i = 0; i < found; i++) {
        tokens[i + 1] = out[i].token;
        values[i + 1] = double(out[i].logit) - best - log_sum;
    }
    return int32_t(found);
}

}
