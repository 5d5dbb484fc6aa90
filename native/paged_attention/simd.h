// A vector of floats by instruction set: just what the kernels need. Each struct is used in one translation unit, which
// is compiled for that set.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace paged {
namespace {

constexpr uint16_t HALF_MINUS_INFINITY = 0xFC00;

#if defined(__AVX512F__)

struct Avx512 {
    using F = __m512;
    static constexpr int W = 16, TILE_ROWS = 6, TILE_VECTORS = 4;  // 24 accumulators of 32 registers
    static F zero() { return _mm512_setzero_ps(); }
    static F all(float x) { return _mm512_set1_ps(x); }
    static F load(const float * p) { return _mm512_loadu_ps(p); }
    static void store(float * p, F x) { _mm512_storeu_ps(p, x); }
    static F half(const uint16_t * p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) p)); }
    static F brain(const uint16_t * p) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *) p)), 16));
    }
    static float one(uint16_t half) { return _cvtsh_ss(half); }
    static F bytes(const int8_t * p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *) p))); }
    static F add(F a, F b) { return _mm512_add_ps(a, b); }
    static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
    static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static F div(F a, F b) { return _mm512_div_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static F max(F a, F b) { return _mm512_max_ps(a, b); }
    static F min(F a, F b) { return _mm512_min_ps(a, b); }
    static F round(F a) { return _mm512_roundscale_ps(a, 0); }
    static F scale2(F a, F n) { return _mm512_scalef_ps(a, n); }  // a * 2^n, n whole
    static float first(F a) { return _mm512_cvtss_f32(a); }
    static float sum(F a) { return _mm512_reduce_add_ps(a); }
    static float most(F a) { return _mm512_reduce_max_ps(a); }
    static F hide(F a, unsigned seen) { return _mm512_mask_mov_ps(all(-INFINITY), (__mmask16) seen, a); }
    // The sums of four vectors.
    static void sum4(F a, F b, F c, F d, float * to) {
        const F ab = add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        const F cd = add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        const F t = add(_mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))),
                        _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))));
        const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(t), _mm512_extractf32x8_ps(t, 1));
        _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1)));
    }
    static uint64_t scan(const uint16_t * mask, bool * biased) {
        const __m512i hidden = _mm512_set1_epi16((short) HALF_MINUS_INFINITY), value = _mm512_set1_epi16(0x7FFF);
        uint64_t seen = 0, other = 0;
        for (int i = 0; i < 2; i++) {
            const __m512i m = _mm512_loadu_si512(mask + 32 * i);
            const __mmask32 bits = _mm512_cmpneq_epi16_mask(m, hidden);
            seen |= uint64_t(bits) << (32 * i);
            other |= _mm512_mask_test_epi16_mask(bits, m, value);
        }
        if (other) *biased = true;
        return seen;
    }
};

#endif
#if defined(__AVX2__)

struct Avx2 {
    using F = __m256;
    static constexpr int W = 8, TILE_ROWS = 6, TILE_VECTORS = 2;  // 12 accumulators of 16 registers
    static F zero() { return _mm256_setzero_ps(); }
    static F all(float x) { return _mm256_set1_ps(x); }
    static F load(const float * p) { return _mm256_loadu_ps(p); }
    static void store(float * p, F x) { _mm256_storeu_ps(p, x); }
    static F half(const uint16_t * p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) p)); }
    static F brain(const uint16_t * p) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *) p)), 16));
    }
    static float one(uint16_t half) { return _cvtsh_ss(half); }
    static F bytes(const int8_t * p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *) p))); }
    static F add(F a, F b) { return _mm256_add_ps(a, b); }
    static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
    static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    static F div(F a, F b) { return _mm256_div_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    static F max(F a, F b) { return _mm256_max_ps(a, b); }
    static F min(F a, F b) { return _mm256_min_ps(a, b); }
    static F round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static F scale2(F a, F n) {
        const __m256i power = _mm256_cvtps_epi32(max(n, all(-126.0f)));
        return mul(a, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(power, _mm256_set1_epi32(127)), 23)));
    }
    static float first(F a) { return _mm256_cvtss_f32(a); }
    static float sum(F a) {
        __m128 h = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        h = _mm_add_ps(h, _mm_movehl_ps(h, h));
        return _mm_cvtss_f32(_mm_add_ss(h, _mm_shuffle_ps(h, h, 1)));
    }
    static float most(F a) {
        __m128 h = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        h = _mm_max_ps(h, _mm_movehl_ps(h, h));
        return _mm_cvtss_f32(_mm_max_ss(h, _mm_shuffle_ps(h, h, 1)));
    }
    static F hide(F a, unsigned seen) {
        const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
        const __m256i kept = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(int(seen)), lane), lane);
        return _mm256_blendv_ps(all(-INFINITY), a, _mm256_castsi256_ps(kept));
    }
    static void sum4(F a, F b, F c, F d, float * to) {
        const F t = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
        _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1)));
    }
    static uint64_t scan(const uint16_t * mask, bool * biased) {
        const __m256i hidden = _mm256_set1_epi16((short) HALF_MINUS_INFINITY), value = _mm256_set1_epi16(0x7FFF);
        uint64_t seen = 0;
        bool other = false;
        for (int i = 0; i < 4; i++) {
            const __m256i m = _mm256_loadu_si256((const __m256i *) (mask + 16 * i));
            const __m256i gone = _mm256_cmpeq_epi16(m, hidden);
            const __m128i packed = _mm_packs_epi16(_mm256_castsi256_si128(gone), _mm256_extracti128_si256(gone, 1));
            seen |= uint64_t(uint16_t(~_mm_movemask_epi8(packed))) << (16 * i);
            other = other || !_mm256_testz_si256(_mm256_andnot_si256(gone, m), value);
        }
        if (other) *biased = true;
        return seen;
    }
};

#endif
#if defined(__aarch64__)

struct Neon {
    using F = float32x4_t;
    static constexpr int W = 4, TILE_ROWS = 6, TILE_VECTORS = 4;  // 24 accumulators of 32 registers
    static F zero() { return vdupq_n_f32(0); }
    static F all(float x) { return vdupq_n_f32(x); }
    static F load(const float * p) { return vld1q_f32(p); }
    static void store(float * p, F x) { vst1q_f32(p, x); }
    static F half(const uint16_t * p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
    static F brain(const uint16_t * p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
    static float one(uint16_t half) { return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(half))), 0); }
    static F bytes(const int8_t * p) {
        int32_t four;
        std::memcpy(&four, p, 4);
        return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four))))));
    }
    static F add(F a, F b) { return vaddq_f32(a, b); }
    static F sub(F a, F b) { return vsubq_f32(a, b); }
    static F mul(F a, F b) { return vmulq_f32(a, b); }
    static F div(F a, F b) { return vdivq_f32(a, b); }
    static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
    static F max(F a, F b) { return vmaxq_f32(a, b); }
    static F min(F a, F b) { return vminq_f32(a, b); }
    static F round(F a) { return vrndnq_f32(a); }
    static F scale2(F a, F n) {
        const int32x4_t power = vcvtq_s32_f32(max(n, all(-126.0f)));
        return mul(a, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(power, vdupq_n_s32(127)), 23)));
    }
    static float first(F a) { return vgetq_lane_f32(a, 0); }
    static float sum(F a) { return vaddvq_f32(a); }
    static float most(F a) { return vmaxvq_f32(a); }
    static F hide(F a, unsigned seen) {
        const uint32_t lanes[4] = {1, 2, 4, 8};
        return vbslq_f32(vtstq_u32(vdupq_n_u32(seen), vld1q_u32(lanes)), a, all(-INFINITY));
    }
    static void sum4(F a, F b, F c, F d, float * to) { vst1q_f32(to, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d))); }
    static uint64_t scan(const uint16_t * mask, bool * biased) {
        uint64_t seen = 0;
        for (int i = 0; i < 64; i++) {
            if (mask[i] == HALF_MINUS_INFINITY) continue;
            seen |= uint64_t(1) << i;
            if (mask[i] & 0x7FFF) *biased = true;
        }
        return seen;
    }
};

#endif

// 2^x for x <= 0, to 1e-7 relative: 2^f on [-1/2, 1/2] interpolated at Chebyshev's nodes. NaN stays NaN.
template <class I> typename I::F exp2(typename I::F x) {
    x = I::max(I::all(-126.0f), x);  // in this order: x86's max of NaN and a number is its second operand
    const auto n = I::round(x), f = I::sub(x, n);
    auto p = I::all(1.33909e-3f);
    p = I::fma(p, f, I::all(9.67603e-3f));
    p = I::fma(p, f, I::all(5.550357e-2f));
    p = I::fma(p, f, I::all(2.4022107e-1f));
    p = I::fma(p, f, I::all(6.9314719e-1f));
    p = I::fma(p, f, I::all(1.0f));
    return I::scale2(p, n);
}

template <class I> typename I::F tanh(typename I::F x) {
    // 1 - 2 / (e^2x + 1), on |x| so that the exponential's argument is never above 0
    const auto ax = I::max(x, I::sub(I::zero(), x));
    const auto e = exp2<I>(I::mul(ax, I::all(-2.0f * 1.44269504f)));
    const auto t = I::div(I::sub(I::all(1.0f), e), I::add(I::all(1.0f), e));
    // the sign of x
    const auto sign = I::max(I::min(I::mul(x, I::all(1e30f)), I::all(1.0f)), I::all(-1.0f));
    return I::mul(t, sign);
}

}  // namespace
}  // namespace paged
