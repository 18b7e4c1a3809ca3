// The kernels of three graphs: TinyBeauty, MediaPipe's face detectors and its face mesh.
//
// WebAssembly SIMD128, without a C library. Who calls (graphs.js) plans the memory. Images are (H, W, C)
// float32 with C padded to a multiple of 4, the padding being 0; `step` is that padded C. Weights are packed
// by graphs.js: for 8 output channels at a time, and then for the last 4, (K, 8) or (K, 4).
// activation: 0 none, 1 max(v, 0), 2 v < 0 ? v * slope[channel] : v.

#include <wasm_simd128.h>

#define KERNEL(name) __attribute__((export_name(#name))) void name
#define INLINE static inline __attribute__((always_inline))
#define TILE_FLOATS 4096  // of the input at a time: 16 KB stay in the first cache while all weights pass by
#define TILE_PIXELS 64  // of a line, for the same reason

typedef v128_t f4;

extern unsigned char __heap_base;
__attribute__((export_name("heap_base"))) int heap_base(void) { return (int)&__heap_base; }

INLINE f4 load(const float *from) { return wasm_v128_load(from); }
INLINE void store(float *to, f4 value) { wasm_v128_store(to, value); }
INLINE f4 multiply_add(f4 a, f4 b, f4 sum) { return wasm_f32x4_add(wasm_f32x4_mul(a, b), sum); }  // graphs.js fuses the two

INLINE f4 activate(f4 value, int activation, const float *slope) {
    const f4 zero = wasm_f32x4_const_splat(0);
    if (activation == 0) return value;
    if (activation == 1) return wasm_f32x4_pmax(zero, value);
    return wasm_v128_bitselect(wasm_f32x4_mul(value, load(slope)), value, wasm_f32x4_lt(value, zero));
}

// --- 1 x 1 convolution --------------------------------------------------------------------------------
// out[p, n] = activate(bias[n] + sum over k of in[p, k] * weight[k, n] + added[p, n])
INLINE void multiply_block(const int pixels, const int vectors, const float *in, int in_step, int lines, int line,
                           float *out, int out_step, int depth, const float *weight, const float *bias,
                           const float *added, int activation, const float *slope) {
    f4 sum[pixels][vectors];
#pragma unroll
    for (int p = 0; p < pixels; p++)
#pragma unroll
        for (int v = 0; v < vectors; v++) sum[p][v] = load(bias + 4 * v);
    for (; lines; lines--, in += line - depth)
        for (const float *end = in + depth; in < end; in++, weight += 4 * vectors) {
            f4 row[vectors];
#pragma unroll
            for (int v = 0; v < vectors; v++) row[v] = load(weight + 4 * v);
#pragma unroll
            for (int p = 0; p < pixels; p++) {
                f4 value = wasm_v128_load32_splat(in + p * in_step);
#pragma unroll
                for (int v = 0; v < vectors; v++) sum[p][v] = multiply_add(value, row[v], sum[p][v]);
            }
        }
#pragma unroll
    for (int p = 0; p < pixels; p++)
#pragma unroll
        for (int v = 0; v < vectors; v++) {
            f4 value = sum[p][v];
            if (added) value = wasm_f32x4_add(value, load(added + p * out_step + 4 * v));
            store(out + p * out_step + 4 * v, activate(value, activation, slope + 4 * v));
        }
}

#define MULTIPLY(pixels, vectors, first, channel)                                                         \
    multiply_block(pixels, vectors, in + (first) * in_step, in_step, lines, line,                         \
                   out + (first) * out_step + channel, out_step, depth, weight + (channel) * lines * depth, \
                   bias + channel, added ? added + (first) * out_step + channel : 0, activation, slope + channel)

// Of each pixel `lines` stretches of `depth` numbers, `line` apart, are read: one, but for `convolve` below.
// `channels` is a multiple of 4; `added` may be 0 and may be `out`; steps are in floats.
KERNEL(pointwise)(const float *in, int in_step, int lines, int line, float *out, int out_step, int pixels,
                  int depth, int channels, const float *weight, const float *bias, const float *added,
                  int activation, const float *slope) {
    int tile = depth > TILE_FLOATS / 4 ? 4 : TILE_FLOATS / depth & ~3;
    for (int start = 0; start < pixels; start += tile) {
        int end = start + tile < pixels ? start + tile : pixels;
        for (int channel = 0; channel < channels; channel += 8) {
            int p = start;
            if (channels - channel >= 8) {
                for (; p + 4 <= end; p += 4) MULTIPLY(4, 2, p, channel);
                for (; p < end; p++) MULTIPLY(1, 2, p, channel);
            } else {
                for (; p + 4 <= end; p += 4) MULTIPLY(4, 1, p, channel);
                for (; p < end; p++) MULTIPLY(1, 1, p, channel);
            }
        }
    }
}

// --- Convolution --------------------------------------------------------------------------------------
// The 1 x 1 convolution above of each output pixel's window of (kernel_h, kernel_w, step) numbers, weight
// (kernel_h, kernel_w, step, n). Windows that reach beyond the picture are laid into `scratch`.
// out[y, x, n] = sum over i, j, k of in[y * stride + i - top, x * stride + j - left, k] * weight[i, j, k, n]
KERNEL(convolve)(const float *in, int height, int width, int step, float *out, int out_height, int out_width,
                 int channels, int kernel_h, int kernel_w, int stride, int top, int left, const float *weight,
                 const float *bias, float *scratch, const float *added, int activation, const float *slope) {
    int line = width * step, stretch = kernel_w * step;
    for (int y = 0; y < out_height; y++) {
        int from_y = y * stride - top, whole = from_y >= 0 && from_y + kernel_h <= height && kernel_w <= width + left;
        int first = whole ? (left + stride - 1) / stride : out_width;  // windows from here to `last` are inside
        int last = whole ? (width + left - kernel_w) / stride + 1 : out_width;
        for (int x = 0, end; x < out_width; x = end) {
            int inside = x >= first && x < last;
            end = inside ? last : x < first && first < out_width ? first : out_width;
            float *to = scratch;
            for (int pixel = x; pixel < end && !inside; pixel++)
                for (int i = 0; i < kernel_h; i++)
                    for (int at = 0; at < stretch; at += 4, to += 4) {
                        int at_y = from_y + i, at_x = (pixel * stride - left) * step + at;
                        int there = at_y >= 0 && at_y < height && at_x >= 0 && at_x < line;
                        store(to, there ? load(in + at_y * line + at_x) : wasm_f32x4_const_splat(0));
                    }
            int place = (y * out_width + x) * channels;
            const float *from = inside ? in + from_y * line + (x * stride - left) * step : scratch;
            pointwise(from, inside ? stride * step : kernel_h * stretch, kernel_h, inside ? line : stretch,
                      out + place, channels, end - x, stretch, channels, weight, bias, added ? added + place : 0,
                      activation, slope);
        }
    }
}

// --- Depthwise convolution: a kernel for each channel, its weight (kernel, kernel, channels) ----------
// out[y, x, c] = bias[c] + sum over i, j of in[y * stride + i - top, x * stride + j - left, c] * weight[i, j, c]
INLINE void slide(const int pixels, const float *in, int line, int step, float *out, int channels,
                  int low, int high, int first, int last, int kernel, const float *weight, f4 bias,
                  int activation, const float *slope, int move) {
    f4 sum[pixels];
#pragma unroll
    for (int p = 0; p < pixels; p++) sum[p] = bias;
    for (int i = low; i < high; i++)
        for (int j = first; j < last; j++) {
            f4 factor = load(weight + (i * kernel + j) * channels);
            const float *from = in + i * line + j * step;
#pragma unroll
            for (int p = 0; p < pixels; p++) sum[p] = multiply_add(load(from + p * move), factor, sum[p]);
        }
#pragma unroll
    for (int p = 0; p < pixels; p++) store(out + p * channels, activate(sum[p], activation, slope));
}

// Four pixels under a kernel of 3, stride 1: six numbers of each line serve all four.
INLINE void slide_three(const float *in, int line, float *out, int channels, int low, int high,
                        const float *weight, f4 bias, int activation, const float *slope) {
    f4 sum[4] = {bias, bias, bias, bias};
    for (int i = low; i < high; i++) {
        const float *from = in + i * line, *factor = weight + 3 * i * channels;
        f4 value[6];
#pragma unroll
        for (int p = 0; p < 6; p++) value[p] = load(from + p * channels);
#pragma unroll
        for (int j = 0; j < 3; j++)
#pragma unroll
            for (int p = 0; p < 4; p++) sum[p] = multiply_add(value[p + j], load(factor + j * channels), sum[p]);
    }
    for (int p = 0; p < 4; p++) store(out + p * channels, activate(sum[p], activation, slope));
}

KERNEL(depthwise)(const float *in, int height, int width, int channels, float *out, int out_height,
                  int out_width, int kernel, int stride, int top, int left, const float *weight,
                  const float *bias, int activation, const float *slope) {
    int line = width * channels, move = stride * channels;
    for (int y = 0; y < out_height; y++) {
        int from_y = y * stride - top;
        int low = from_y < 0 ? -from_y : 0, high = from_y + kernel > height ? height - from_y : kernel;
        for (int tile = 0; tile < out_width; tile += TILE_PIXELS)
            for (int c = 0; c < channels; c += 4)
                for (int x = tile, end = tile + TILE_PIXELS < out_width ? tile + TILE_PIXELS : out_width; x < end;) {
                    f4 start = load(bias + c);
                    int from_x = x * stride - left;
                    const float *from = in + from_y * line + from_x * channels + c;
                    float *to = out + (y * out_width + x) * channels + c;
                    if (from_x >= 0 && x + 4 <= end && from_x + 3 * stride + kernel <= width) {
                        if (kernel == 3 && stride == 1)
                            slide_three(from, line, to, channels, low, high, weight + c, start, activation,
                                        slope + c);
                        else
                            slide(4, from, line, channels, to, channels, low, high, 0, kernel, kernel,
                                  weight + c, start, activation, slope + c, move);
                        x += 4;
                    } else {
                        int first = from_x < 0 ? -from_x : 0;
                        int last = from_x + kernel > width ? width - from_x : kernel;
                        slide(1, from, line, channels, to, channels, low, high, first, last, kernel, weight + c,
                              start, activation, slope + c, move);
                        x++;
                    }
                }
    }
}

// --- Transposed convolution, 2 x 2 with stride 2, in groups -------------------------------------------
// out[2y + i, 2x + j, n] = bias[n] + sum over the k of n's group of in[y, x, k] * weight[i, j, k, n]
// `channels` and `depth` are those of one group, channels a multiple of 4; the weight of (i, j) and a group
// is packed as for the 1 x 1 convolution, groups innermost.
KERNEL(upsample)(const float *in, int height, int width, int depth, float *out, int channels, int groups,
                 const float *weight, const float *bias) {
    int step = depth * groups, out_step = channels * groups;
    for (int y = 0; y < height; y++)
        for (int corner = 0; corner < 4; corner++)
            for (int group = 0; group < groups; group++)
                pointwise(in + y * width * step + group * depth, step, 1, 0,
                          out + ((2 * y + corner / 2) * 2 * width + corner % 2) * out_step + group * channels,
                          2 * out_step, width, depth, channels,
                          weight + (corner * groups + group) * depth * channels, bias + group * channels, 0,
                          0, bias);
}

INLINE f4 pick(const float *from, int depth, int k) {  // the k-th number of each of four groups
    if (depth != 2) return wasm_f32x4_make(from[k], from[depth + k], from[2 * depth + k], from[3 * depth + k]);
    f4 low = load(from), high = load(from + 4);
    return k ? wasm_i32x4_shuffle(low, high, 1, 3, 5, 7) : wasm_i32x4_shuffle(low, high, 0, 2, 4, 6);
}

// Groups of one output channel and `depth` input channels each; weight (2, 2, depth, channels).
KERNEL(upsample_deep)(const float *in, int height, int width, int depth, float *out, int channels,
                      const float *weight, const float *bias) {
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++, in += depth * channels)
            for (int c = 0; c < channels; c += 4) {
                f4 start = load(bias + c), sum[4] = {start, start, start, start};
                for (int k = 0; k < depth; k++) {
                    f4 value = pick(in + c * depth, depth, k);
                    for (int corner = 0; corner < 4; corner++)
                        sum[corner] = multiply_add(value, load(weight + (corner * depth + k) * channels + c),
                                                   sum[corner]);
                }
                for (int corner = 0; corner < 4; corner++)
                    store(out + ((2 * y + corner / 2) * 2 * width + 2 * x + corner % 2) * channels + c,
                          sum[corner]);
            }
}

// --- What costs little --------------------------------------------------------------------------------
// out[p, c] = activate(a[p, c] + b[p, c]); b may be 0
KERNEL(add)(const float *a, const float *b, float *out, int pixels, int channels, int activation,
            const float *slope) {
    for (int p = 0; p < pixels; p++)
        for (int c = 0; c < channels; c += 4, a += 4, out += 4) {
            f4 value = load(a);
            if (b) value = wasm_f32x4_add(value, load(b)), b += 4;
            store(out, activate(value, activation, slope + c));
        }
}

// out[y, x, c] = max of in[2y .. 2y + 1, 2x .. 2x + 1, c]; height and width are the output's
KERNEL(max_pool)(const float *in, float *out, int height, int width, int channels) {
    int line = 2 * width * channels;
    for (int y = 0; y < height; y++, in += line)
        for (int x = 0; x < width; x++, in += channels)
            for (int c = 0; c < channels; c += 4, in += 4, out += 4)
                store(out, wasm_f32x4_pmax(
                               wasm_f32x4_pmax(load(in), load(in + channels)),
                               wasm_f32x4_pmax(load(in + line), load(in + line + channels))));
}

// out[p, c] = in[p, c], and 0 for the channels that `in` does not have
KERNEL(widen)(const float *in, int step, float *out, int channels, int pixels) {
    for (int p = 0; p < pixels; p++, in += step)
        for (int c = 0; c < channels; c += 4, out += 4)
            store(out, c < step ? load(in + c) : wasm_f32x4_const_splat(0));
}

// Twice as large: out[y, x] is between the pixels around ((y + 0.5) / 2 - 0.5, (x + 0.5) / 2 - 0.5)
KERNEL(resize)(const float *in, int height, int width, int channels, float *out) {
    for (int y = 0; y < 2 * height; y++)
        for (int x = 0; x < 2 * width; x++) {
            int near_y = y / 2, far_y = near_y + (y % 2 ? 1 : -1);
            int near_x = x / 2, far_x = near_x + (x % 2 ? 1 : -1);
            far_y = far_y < 0 ? 0 : far_y < height ? far_y : height - 1;
            far_x = far_x < 0 ? 0 : far_x < width ? far_x : width - 1;
            for (int c = 0; c < channels; c += 4, out += 4) {
#define CORNER(row, column, share)                                                                        \
    wasm_f32x4_mul(load(in + (row * width + column) * channels + c), wasm_f32x4_const_splat(share))
                f4 upper = wasm_f32x4_add(CORNER(near_y, near_x, 0.5625f), CORNER(near_y, far_x, 0.1875f));
                f4 lower = wasm_f32x4_add(CORNER(far_y, near_x, 0.1875f), CORNER(far_y, far_x, 0.0625f));
                store(out, wasm_f32x4_add(upper, lower));
            }
        }
}

// --- Pixels in bytes, 4 of them at a time -------------------------------------------------------------
INLINE f4 read_pixel(const unsigned char *from) {
    return wasm_f32x4_convert_i32x4(
        wasm_u32x4_extend_low_u16x8(wasm_u16x8_extend_low_u8x16(wasm_v128_load32_zero(from))));
}

INLINE f4 mix(f4 a, f4 b, f4 t) { return multiply_add(wasm_f32x4_sub(b, a), t, a); }

INLINE void write_pixel(unsigned char *to, f4 value) {  // cut to a whole level, 0 .. 255
    f4 whole = wasm_i32x4_trunc_sat_f32x4(value), narrow = wasm_i16x8_narrow_i32x4(whole, whole);
    wasm_v128_store32_lane(to, wasm_u8x16_narrow_i16x8(narrow, narrow), 0);
}

// --- A residual laid onto a photo ---------------------------------------------------------------------
// Keys 1981, cubic convolution with a = -0.75, or bilinear; 0 outside of the residual
#define SPLAT wasm_f32x4_const_splat
INLINE f4 find_cubic(float place) {  // the shares of four pixels, `place` from the second to the third
    const float a = -0.75f;
    f4 t = wasm_f32x4_splat(place), shares = wasm_f32x4_make(a, a + 2, -a - 2, -a);
    shares = multiply_add(shares, t, wasm_f32x4_make(-2 * a, -a - 3, 2 * a + 3, a));
    shares = multiply_add(shares, t, wasm_f32x4_make(a, 0, -a, 0));
    return multiply_add(shares, t, wasm_f32x4_make(0, 1, 0, 0));
}

// One row's four pixels by their shares.
INLINE f4 add_four(const float *from, f4 share) {
    f4 sum = wasm_f32x4_mul(load(from), wasm_i32x4_shuffle(share, share, 0, 0, 0, 0));
    sum = multiply_add(load(from + 4), wasm_i32x4_shuffle(share, share, 1, 1, 1, 1), sum);
    sum = multiply_add(load(from + 8), wasm_i32x4_shuffle(share, share, 2, 2, 2, 2), sum);
    return multiply_add(load(from + 12), wasm_i32x4_shuffle(share, share, 3, 3, 3, 3), sum);
}

// pixels[y, x] += residual at (a x + b y + c, d x + e y + f), rounded to even and clamped to 0 .. 255
// pixels: (height, width, 4) bytes. residual: (size + 8, size + 8, 4), with a frame of 4 zeros.
KERNEL(lay)(unsigned char *pixels, int height, int width, const float *residual, int size, int cubic, double a,
            double b, double c, double d, double e, double f) {
    int line = (size + 8) * 4;
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++, pixels += 4) {
            double at_x = a * (x + 0.5) + b * (y + 0.5) + c - 0.5;
            double at_y = d * (x + 0.5) + e * (y + 0.5) + f - 0.5;
            if (!(at_x > -2 && at_x < size + 1 && at_y > -2 && at_y < size + 1)) continue;
            int left = (int)(at_x + 2) - 2, top = (int)(at_y + 2) - 2;  // floor, as both are above -2
            float across = (float)(at_x - left), down = (float)(at_y - top);
            const float *from = residual + (top + 4) * line + (left + 4) * 4;  // 4 for the frame
            f4 sum;
            if (cubic) {
                f4 shares = find_cubic(across), rows = find_cubic(down);
                from -= line + 4;
                sum = wasm_f32x4_mul(add_four(from, shares), wasm_i32x4_shuffle(rows, rows, 0, 0, 0, 0));
                sum = multiply_add(add_four(from + line, shares), wasm_i32x4_shuffle(rows, rows, 1, 1, 1, 1), sum);
                sum = multiply_add(add_four(from + 2 * line, shares), wasm_i32x4_shuffle(rows, rows, 2, 2, 2, 2), sum);
                sum = multiply_add(add_four(from + 3 * line, shares), wasm_i32x4_shuffle(rows, rows, 3, 3, 3, 3), sum);
            } else {
                f4 t = wasm_f32x4_splat(across);
                sum = mix(mix(load(from), load(from + 4), t), mix(load(from + line), load(from + line + 4), t), wasm_f32x4_splat(down));
            }
            write_pixel(pixels, wasm_f32x4_nearest(wasm_f32x4_add(read_pixel(pixels), sum)));
        }
}

// --- A square cut out of a picture, as Pillow does with Image.transform and then reduce ---------------
// b + t (c - a + t (2 (a - b) + c - d + t (b - a + d - c)))
INLINE f4 mix_four(f4 a, f4 b, f4 c, f4 d, f4 t) {
    f4 rise = wasm_f32x4_sub(b, a), turn = wasm_f32x4_sub(d, c);
    f4 third = wasm_f32x4_add(rise, turn), second = wasm_f32x4_sub(wasm_f32x4_sub(wasm_f32x4_sub(c, d), rise), rise);
    return multiply_add(t, multiply_add(t, multiply_add(t, third, second), wasm_f32x4_sub(c, a)), b);
}

// in: `step` bytes a pixel. out[y, x], RGB: the mean of fine x fine places around (x0, y0) + (x + 0.5) right + (y + 0.5) down, each bilinear or bicubic, and
// cut to a whole level after `up` is added. Outside the picture is 0 or, if edge, its border; a byte behind it is read.
KERNEL(cut)(const unsigned char *in, int width, int height, int step, unsigned char *out, int size, int fine, int bicubic, int edge,
            float up, double x0, double y0, double right_x, double right_y, double down_x, double down_y) {
    int line = step * width, last_x = line - step, last_y = line * (height - 1);
    for (int y = 0; y < size; y++)
        for (int x = 0; x < size; x++, out += 3) {
            f4 sum = SPLAT(0);
            for (int place = 0; place < fine * fine; place++) {
                double u = x + (place % fine + 0.5) / fine, v = y + (place / fine + 0.5) / fine;
                double at_x = x0 + right_x * u + down_x * v, at_y = y0 + right_y * u + down_y * v;
                if (!(at_x >= 0 && at_y >= 0 && at_x < width && at_y < height)) {
                    if (!edge) continue;
                    at_x = at_x < 0 ? 0 : at_x < width ? at_x : width;
                    at_y = at_y < 0 ? 0 : at_y < height ? at_y : height;
                }
                int left = (int)(at_x + 0.5) - 1, top = (int)(at_y + 0.5) - 1;
                f4 along = wasm_f32x4_splat((float)(at_x - 0.5 - left)), deep = wasm_f32x4_splat((float)(at_y - 0.5 - top));
                int b = left < 0 ? 0 : step * left, c = left + 1 < width ? step * (left + 1) : last_x;
                int first = top < 0 ? 0 : line * top, second = top + 1 < height ? line * (top + 1) : last_y;
                f4 value;
                if (bicubic) {
                    int a = left < 1 ? 0 : b - step, d = c < last_x ? c + step : last_x;
                    int rows[4] = {top < 1 ? 0 : first - line, first, second, second < last_y ? second + line : last_y};
                    f4 across[4];
                    for (int row = 0; row < 4; row++) {
                        const unsigned char *from = in + rows[row];
                        across[row] = mix_four(read_pixel(from + a), read_pixel(from + b), read_pixel(from + c),
                                               read_pixel(from + d), along);
                    }
                    value = mix_four(across[0], across[1], across[2], across[3], deep);
                } else {
                    value = mix(mix(read_pixel(in + first + b), read_pixel(in + first + c), along),
                                mix(read_pixel(in + second + b), read_pixel(in + second + c), along), deep);
                }
                value = wasm_f32x4_trunc(wasm_f32x4_add(value, wasm_f32x4_splat(up)));
                sum = wasm_f32x4_add(sum, wasm_f32x4_pmin(SPLAT(255), wasm_f32x4_pmax(SPLAT(0), value)));
            }
            f4 count = wasm_f32x4_splat((float)(fine * fine));
            write_pixel(out, wasm_f32x4_div(multiply_add(count, SPLAT(0.5f), sum), count));
        }
}
