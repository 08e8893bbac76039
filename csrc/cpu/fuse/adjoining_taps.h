// The operator with filters whose taps are adjacent in memory, as a convolution in channels_last leaves them.
//
// All taps of a pixel, of every level and image split from one convolution, lie together. So a tile of few pixels is
// finished with all of them before the next: each line of memory is read once, in order, and the taps are rearranged
// into vectors of pixels in registers. Sums have the order of adaptive_fuse_rows.h, and so the same bits.
#pragma once
#include "adaptive_fuse_rows.h"

namespace ffmef {
namespace FFMEF_ISA {
namespace {

// Pixels at a time: whole vectors and whole blocks for every storage type.
constexpr int64_t kTilePixels = 16;

// Whether a pixel's taps are adjacent in memory.
inline bool taps_adjoin(const LevelView& level) {
  return !in_rows(level) && !level.coarse && (level.stride[2] == 1 || level.size == 1);
}

inline bool all_taps_adjoin(const AdaptiveFuseArgs& args) {
  for (int l = 0; l < args.level_count; ++l)
    if (!taps_adjoin(args.levels[l])) return false;
  return args.level_count > 0;
}

// Requests the filters of later pixels from memory, a few lines with every block that is used. In one burst they would
// fill the queue of outstanding reads, and those of the current tile would wait. Near lines go to the first-level
// cache. Far ones go to the second, because it is more than the first can hold until memory has answered.
class FilterSweep {
 public:
  explicit FilterSweep(const AdaptiveFuseArgs& args) : runs_(args.level_count * args.images.count) {
    for (int l = 0; l < args.level_count; ++l)
      for (int64_t n = 0; n < args.images.count; ++n) add(args.levels[l], n);
    // Runs with long gaps are left to the hardware: most of what they span is not needed.
    int64_t kept = 0;
    for (int64_t i = 0; i < count_; ++i)
      if (2 * runs_[i].bytes >= runs_[i].pixel) runs_[kept++] = runs_[i];
    count_ = kept;
  }

  // The tile that begins at (y, x) comes now.
  void start(int64_t b, int64_t y, int64_t x) {
    b_ = b, y_ = y, x_ = x, run_ = 0, next_ = end_ = 0;
    next_run();
  }
  // A block of that many lines is used.
  template <int kLines> void step() {
    if (next_ >= end_) return;
#pragma GCC unroll 8
    for (int line = 0; line < kLines; ++line) {
      __builtin_prefetch(reinterpret_cast<const char*>(next_ + line * kLine), 0, 3);
      __builtin_prefetch(reinterpret_cast<const char*>(next_ + line * kLine + kFar), 0, 2);
    }
    next_ += kLines * kLine;
    if (next_ >= end_) next_run();
  }

 private:
  static constexpr int64_t kLine = 64, kLeastNear = 4096, kMostNear = 8192, kFar = 8192;
  // What is read of one pixel stride, in bytes.
  struct Run {
    uintptr_t data;
    int64_t batch, row, pixel, bytes;
  };

  void add(const LevelView& level, int64_t n) {
    const int64_t size = level.scalar == Scalar::f64 ? 8 : level.scalar == Scalar::f32 ? 4 : 2;
    const Run run{reinterpret_cast<uintptr_t>(level.data) + uintptr_t(n * level.stride[1] * size),
                  level.stride[0] * size, level.stride[3] * size, level.stride[4] * size,
                  int64_t(level.size) * level.size * size};
    for (int64_t i = 0; i < count_; ++i) {
      Run& other = runs_[i];
      if (run.batch != other.batch || run.row != other.row || run.pixel != other.pixel) continue;
      const uintptr_t low = run.data < other.data ? run.data : other.data;
      const uintptr_t run_end = run.data + uintptr_t(run.bytes), other_end = other.data + uintptr_t(other.bytes);
      const int64_t bytes = int64_t((run_end > other_end ? run_end : other_end) - low);
      if (bytes > run.pixel) continue;
      other.data = low;
      other.bytes = bytes;
      return;
    }
    runs_[count_++] = run;
  }

  void next_run() {
    if (run_ == count_) return;
    const Run& run = runs_[run_++];
    const int64_t bytes = kTilePixels * run.pixel, near = least(most(bytes, kLeastNear), kMostNear);
    next_ = run.data + uintptr_t(b_ * run.batch + y_ * run.row + x_ * run.pixel + near);
    end_ = next_ + uintptr_t(bytes);
  }

  Buffer<Run> runs_;
  int64_t count_ = 0, run_ = 0, b_ = 0, y_ = 0, x_ = 0;
  uintptr_t next_ = 0, end_ = 0;
};

// A tile's pixels of kTurned<T> adjacent taps, one tap's pixels after the other's.
template <class T> struct TurnedBlock {
  using Bits = typename BitsOf<sizeof(T)>::type;
  static constexpr int kTaps = kTurned<T>;
  static constexpr int64_t kPixels = kTurnedPixels<T>;
  static constexpr int kLines = int(kTilePixels * kTaps * int64_t(sizeof(T)) / 64);
  alignas(64) Bits values[kTaps * kTilePixels];

  inline __attribute__((always_inline)) void turn(const T* filter, int64_t stride) {
    for (int64_t x = 0; x < kTilePixels; x += kPixels)
      turn_block(values + x, kTilePixels, reinterpret_cast<const Bits*>(filter + x * stride), stride);
  }
  // The only tap.
  void gather(const T* filter, int64_t stride) {
    const Bits* in = reinterpret_cast<const Bits*>(filter);
    for (int64_t x = 0; x < kTilePixels; ++x) values[x] = in[x * stride];
  }
  const T* row(int tap) const { return reinterpret_cast<const T*>(values) + tap * kTilePixels; }
};

// Calls use(t, count, block, from) for the taps of a tile in order: `count` of them from t on are the block's from
// `from` on. `room`: kTaps values may be read from every tap on.
template <class T, class Use>
inline __attribute__((always_inline)) void over_blocks(const T* filter, int64_t stride, int taps, bool room,
                                                       FilterSweep& sweep, const Use& use) {
  using Block = TurnedBlock<T>;
  Block block;
  int t = 0;
  for (; t + Block::kTaps <= taps; t += Block::kTaps) {
    sweep.step<Block::kLines>();
    block.turn(filter + t, stride);
    use(t, std::integral_constant<int, Block::kTaps>(), block, 0);
  }
  // The square of an odd number leaves one tap.
  sweep.step<Block::kLines>();
  if (room) {
    block.turn(filter + t, stride);
    use(t, std::integral_constant<int, 1>(), block, 0);
  } else if (t > 0) {
    block.turn(filter + t + 1 - Block::kTaps, stride);
    use(t, std::integral_constant<int, 1>(), block, Block::kTaps - 1);
  } else {
    block.gather(filter, stride);
    use(t, std::integral_constant<int, 1>(), block, 0);
  }
}

// sums_c[x] += sum_t filter[x * stride + t] * image_c[offsets[t] + x] for a tile, tap after tap; the channels' sums are
// kTilePixels apart. kOne: there is a single channel, whose sums stay in registers.
template <class T, bool kOne> void add_adjoining_taps(Acc<T>* sums, const T* filter, int64_t stride, int taps,
                                                      bool room, const Acc<T>* image, int64_t to_channel,
                                                      const int64_t* offsets, int64_t channels, FilterSweep& sweep) {
  constexpr int kVectors = int(kTilePixels) / lanes<T>;
  Vec<T> sum[kVectors];
  for (int v = 0; kOne && v < kVectors; ++v) sum[v] = load(sums + v * lanes<T>);
  over_blocks(filter, stride, taps, room, sweep,
              [&](int t, auto count, const TurnedBlock<T>& block, int from) __attribute__((always_inline)) {
                for (int64_t c = 0; c < (kOne ? 1 : channels); ++c) {
                  for (int v = 0; !kOne && v < kVectors; ++v) sum[v] = load(sums + c * kTilePixels + v * lanes<T>);
                  for (int q = 0; q < count; ++q)
                    for (int v = 0; v < kVectors; ++v)
                      sum[v] += load(block.row(from + q) + v * lanes<T>) *
                                load(image + c * to_channel + offsets[t + q] + v * lanes<T>);
                  for (int v = 0; !kOne && v < kVectors; ++v) store(sums + c * kTilePixels + v * lanes<T>, sum[v]);
                }
              });
  for (int v = 0; kOne && v < kVectors; ++v) store(sums + v * lanes<T>, sum[v]);
}

// Where the taps of every level find their pixel, from a level's first tap on.
struct TapOffsets {
  Buffer<int64_t> values;
  TapOffsets(const AdaptiveFuseArgs& args, int64_t pitch) {
    int64_t count = 0;
    for (int l = 0; l < args.level_count; ++l) count += args.levels[l].size * args.levels[l].size;
    values = Buffer<int64_t>(count);
    int64_t* out = values.data;
    for (int l = 0; l < args.level_count; ++l)
      for (int t = 0; t < args.levels[l].size * args.levels[l].size; ++t)
        *out++ = t / args.levels[l].size * pitch + t % args.levels[l].size;
  }
};

template <class A> struct AdjoiningForward {
  const AdaptiveFuseArgs& args;
  const Tiling tiling;
  PaddedRows<A> padded;
  TapOffsets offsets;
  FilterSweep sweep;
  Buffer<A> sums, totals;

  explicit AdjoiningForward(const AdaptiveFuseArgs& a)
      : args(a),
        tiling(tiling_of<A>(a)),
        padded(a, tiling),
        offsets(a, padded.pitch),
        sweep(a),
        sums(a.images.channels * kTilePixels),
        totals(a.images.channels * tiling.columns) {}

  // Adds one level at the tile that begins at the item's column x to the sums.
  template <class T>
  void add_level(const LevelView& level, const Item& item, int64_t y, int64_t x, const int64_t* tap_offsets) {
    const ImagesView& im = args.images;
    const int radius = level.size / 2;
    // Another pixel follows, and its taps do not begin before the block ends.
    const bool room = item.x0 + x + kTilePixels < im.width && level.stride[4] >= TurnedBlock<T>::kTaps;
    const auto add = im.channels == 1 ? add_adjoining_taps<T, true> : add_adjoining_taps<T, false>;
    for (int64_t n = 0; n < im.count; ++n)
      add(sums.data, at<T>(level.data, tap_offset(level, item.b, n, 0, y, item.x0 + x)), level.stride[4],
          level.size * level.size, room, padded.row(item, n * im.channels, y - radius) + padded.radius - radius + x,
          padded.rows * padded.pitch, tap_offsets, im.channels, sweep);
  }

  void tile(const Item& item, int64_t y, int64_t x, A* responses) {
    const ImagesView& im = args.images;
    sweep.start(item.b, y, item.x0 + x);
    const int64_t* tap_offsets = offsets.values.data;
    for (int l = 0; l < args.level_count; ++l) {
      const LevelView& level = args.levels[l];
      std::memset(sums.data, 0, size_t(im.channels * kTilePixels) * sizeof(A));
      FFMEF_STORED_AS(A, level.scalar, add_level<T>(level, item, y, x, tap_offsets))
      tap_offsets += level.size * level.size;
      const A alpha = A(level.alpha);
      for (int64_t c = 0; c < im.channels; ++c) {
        const A* from = sums.data + c * kTilePixels;
        add_scaled(totals.data + c * tiling.columns + x, from, alpha, l == 0, kTilePixels);
        if (responses != nullptr)
          std::memcpy(
              responses + (((l * im.batch + item.b) * im.channels + c) * im.height + y) * im.width + item.x0 + x, from,
              kTilePixels * sizeof(A));
      }
    }
  }

  void operator()(const Item& item, void* out, A* responses) {
    const ImagesView& im = args.images;
    const int64_t width = item.x1 - item.x0;
    padded.fill(args, item);
    for (int64_t y = item.y0; y < item.y1; ++y) {
      // The last tile overlaps the one before it, whose pixels it computes once more.
      for (int64_t x = 0; x < width; x += kTilePixels) tile(item, y, least(x, width - kTilePixels), responses);
      for (int64_t c = 0; c < im.channels; ++c)
        store_stored(out, args.result, ((item.b * im.channels + c) * im.height + y) * im.width + item.x0,
                     totals.data + c * tiling.columns, width);
    }
  }
};

template <class A>
void forward_adjoining(const AdaptiveFuseArgs& args, void* out, A* responses, int64_t begin, int64_t end) {
  AdjoiningForward<A> forward(args);
  for (int64_t index = begin; index < end; ++index) {
    const Item item = item_at(args, forward.tiling, index);
    if (item.x1 - item.x0 >= kTilePixels)
      forward(item, out, responses);
    else
      forward_typed<NoCoarseLevels>(args, out, responses, index, index + 1);
  }
}

// --- gradient of the images

// padded_i[x0 + u] += sum_j grad[u - j] * filter_ij[u - j] for rows i in [first, last) of a filter, whole vectors.
template <class T, int K> void gather_chunk(Acc<T>* const* padded, int64_t x0, const Acc<T>* grad, const T* filters,
                                            int64_t pitch, int size, int first, int last, int64_t n) {
  const int k = K ? K : size;
  for (int64_t u = 0; u < n; u += lanes<T>)
    for (int i = first; i < last; ++i) {
      Acc<T>* to = padded[i] + x0 + u;
      Vec<T> s = load(to);
      for (int j = 0; j < k; ++j) s += load(grad + u - j) * load(filters + (i * k + j) * pitch + u - j);
      store(to, s);
    }
}

// Goes through the rows of filters once. Each passes its gradients to the 2 * radius + 1 padded rows that it read,
// which are kept until they are complete.
template <class A> struct AdjoiningImages {
  static constexpr int64_t kChunk = 128;                              // columns rearranged at a time
  static constexpr int64_t kMargin = 32;                              // at least 2 * radius, in whole vectors
  static constexpr int64_t kPitch = kMargin + kChunk + kMargin + 16;  // of rearranged taps, and room for a vector

  const AdaptiveFuseArgs& args;
  const GradView& grad;
  const int64_t band_rows, radius, planes, ring_rows, padded_pitch, grad_pitch, image_taps;
  FilterSweep sweep;
  Buffer<A> taps, grads, ring, totals;
  Buffer<A*> readers;  // the padded rows that one row of outputs reads, by plane
  int64_t b = 0, p0 = 0, p1 = 0;

  // Of one pixel and image, all levels.
  static int64_t taps_of(const AdaptiveFuseArgs& args) {
    int64_t count = 0;
    for (int l = 0; l < args.level_count; ++l) count += args.levels[l].size * args.levels[l].size;
    return count;
  }
  // Rows of the images in an item. The radius above and below them is read twice; small images need items for threads.
  static int64_t rows_of(const AdaptiveFuseArgs& args) {
    return most(args.images.height >= 512 ? 64 : 32, 8 * largest_radius(args));
  }
  static int64_t bands(const AdaptiveFuseArgs& args) { return (args.images.height - 1) / rows_of(args) + 1; }

  AdjoiningImages(const AdaptiveFuseArgs& a, const GradView& g)
      : args(a),
        grad(g),
        band_rows(rows_of(a)),
        radius(largest_radius(a)),
        planes(a.images.count * a.images.channels),
        ring_rows(2 * radius + 1),
        padded_pitch(a.images.width + 2 * kMargin),
        grad_pitch(a.images.width + 3 * kMargin),
        image_taps(taps_of(a)),
        sweep(a),
        taps(a.images.count * image_taps * kPitch),
        grads(a.level_count * a.images.channels * grad_pitch),
        ring(ring_rows * planes * padded_pitch),
        totals(planes * band_rows * a.images.width),
        readers(planes * ring_rows) {
    std::memset(taps.data, 0, size_t(a.images.count * image_taps * kPitch) * sizeof(A));
    std::memset(grads.data, 0, size_t(a.level_count * a.images.channels * grad_pitch) * sizeof(A));
  }

  // Padded row r of a plane, from column -radius on.
  A* ring_row(int64_t r, int64_t plane) const {
    return ring.data + ((r + 2 * ring_rows) % ring_rows * planes + plane) * padded_pitch;
  }
  A* total_row(int64_t plane, int64_t p) const {
    return totals.data + (plane * band_rows + p - p0) * args.images.width;
  }

  // Rows i of a level's filters whose padded row q + i - radius is among [r0, r1).
  struct TapRows {
    int first, last;
  };
  static TapRows needed(const LevelView& level, int64_t q, int64_t r0, int64_t r1) {
    const int64_t top = q - level.size / 2;
    return {int(least(most(r0 - top, 0), level.size)), int(least(most(r1 - top, 0), level.size))};
  }

  // Rows of the gradient times each level's alpha, with zeros on both sides.
  void load_grads(int64_t q) {
    const ImagesView& im = args.images;
    A* out = grads.data + kMargin;
    for (int l = 0; l < args.level_count; ++l)
      for (int64_t c = 0; c < im.channels; ++c, out += grad_pitch) {
        load_stored(out, grad.data, args.result, b * grad.stride[0] + c * grad.stride[1] + q * grad.stride[2],
                    grad.stride[3], im.width);
        for (int64_t x = 0; x < im.width; ++x) out[x] *= A(args.levels[l].alpha);
      }
  }

  // Rearranged taps from a level's first on, kPitch apart, at the first column of a chunk.
  template <class T> T* tap_rows(int64_t image_tap, int64_t n) const {
    return reinterpret_cast<T*>(taps.data + (n * image_taps + image_tap) * kPitch) + kMargin;
  }

  template <class T> void turn_level(const LevelView& level, int64_t image_tap, int64_t q, int64_t x, int64_t to) {
    const int count = level.size * level.size;
    const bool room = x + kTilePixels < args.images.width && level.stride[4] >= TurnedBlock<T>::kTaps;
    for (int64_t n = 0; n < args.images.count; ++n) {
      T* rows = tap_rows<T>(image_tap, n) + to;
      over_blocks(at<T>(level.data, tap_offset(level, b, n, 0, q, x)), level.stride[4], count, room, sweep,
                  [&](int t, auto used, const TurnedBlock<T>& block, int from) __attribute__((always_inline)) {
                    for (int i = 0; i < used; ++i)
                      std::memcpy(rows + (t + i) * kPitch, block.row(from + i), kTilePixels * sizeof(T));
                  });
    }
  }

  // Calls use(level, l, its first tap, rows) for the levels that row q passes gradients to rows [r0, r1) with.
  template <class Use> void over_levels(int64_t q, int64_t r0, int64_t r1, const Use& use) const {
    int64_t image_tap = 0;
    for (int l = 0; l < args.level_count; ++l) {
      const LevelView& level = args.levels[l];
      const TapRows some = needed(level, q, r0, r1);
      if (some.first < some.last) use(level, l, image_tap, some);
      image_tap += level.size * level.size;
    }
  }

  int64_t margin_columns() const { return (2 * radius + 15) / 16 * 16; }
  // Sets the columns from `to` on to zero, or moves the end of a chunk to where the next one looks left of itself.
  template <class T> void fill_margin(const LevelView& level, int64_t image_tap, int64_t to, bool moved) const {
    const int64_t columns = margin_columns();
    for (int64_t n = 0; n < args.images.count; ++n)
      for (int t = 0; t < level.size * level.size; ++t) {
        T* row = tap_rows<T>(image_tap, n) + t * kPitch;
        for (int64_t x = 0; x < columns; x += 16)
          if (moved)
            std::memcpy(row - columns + x, row + kChunk - columns + x, 16 * sizeof(T));
          else
            std::memset(row + to + x, 0, 16 * sizeof(T));
      }
  }

  template <class T>
  void gather_level(const LevelView& level, int l, int64_t image_tap, TapRows rows, int64_t x0, int64_t columns) {
    const ImagesView& im = args.images;
    const auto gather = level.size == 1   ? gather_chunk<T, 1>
                        : level.size == 3 ? gather_chunk<T, 3>
                        : level.size == 5 ? gather_chunk<T, 5>
                        : level.size == 7 ? gather_chunk<T, 7>
                                          : gather_chunk<T, 0>;
    for (int64_t n = 0; n < im.count; ++n)
      for (int64_t c = 0; c < im.channels; ++c) {
        // Every level passes on what reaches the same padded columns, so that its turn at each is the same.
        const int64_t inner = radius - level.size / 2;
        gather(readers.data + (n * im.channels + c) * ring_rows + inner, x0,
               grads.data + (l * im.channels + c) * grad_pitch + kMargin + x0 - inner,
               tap_rows<T>(image_tap, n) - inner, kPitch, level.size, rows.first, rows.last, columns);
      }
  }

  // Passes the gradients of output row q to padded rows [r0, r1).
  void add_row(int64_t q, int64_t r0, int64_t r1) {
    const int64_t width = args.images.width;
    load_grads(q);
    for (int64_t plane = 0; plane < planes; ++plane)
      for (int64_t i = 0; i < ring_rows; ++i) readers[plane * ring_rows + i] = ring_row(q - radius + i, plane);
    over_levels(q, r0, r1, [&](const LevelView& level, int, int64_t image_tap, TapRows) {
      FFMEF_STORED_AS(A, level.scalar, fill_margin<T>(level, image_tap, -margin_columns(), false))
    });
    for (int64_t x0 = 0; x0 < width; x0 += kChunk) {
      const bool last = width - x0 <= kChunk;
      for (int64_t x = x0; x < least(x0 + kChunk, width); x += kTilePixels) {
        const int64_t tile = least(x, width - kTilePixels);
        sweep.start(b, q, tile);
        over_levels(q, r0, r1, [&](const LevelView& level, int, int64_t image_tap, TapRows) {
          FFMEF_STORED_AS(A, level.scalar, turn_level<T>(level, image_tap, q, tile, tile - x0))
        });
      }
      over_levels(q, r0, r1, [&](const LevelView& level, int l, int64_t image_tap, TapRows rows) {
        FFMEF_STORED_AS(A, level.scalar, {
          if (last) fill_margin<T>(level, image_tap, width - x0, false);
          gather_level<T>(level, l, image_tap, rows, x0, last ? width - x0 + 2 * radius : kChunk);
          if (!last) fill_margin<T>(level, image_tap, 0, true);
        })
      });
    }
  }

  void clear(int64_t r) {
    for (int64_t plane = 0; plane < planes; ++plane)
      std::memset(ring_row(r, plane), 0, size_t(args.images.width + 2 * radius) * sizeof(A));
  }
  // Adds a complete padded row to the row of the image that it repeats.
  void fold(int64_t r) {
    const ImagesView& im = args.images;
    const int64_t p = padded_index(r, im.height, args.padding);
    for (int64_t plane = 0; p >= p0 && p < p1 && plane < planes; ++plane)
      fold_row(total_row(plane, p), ring_row(r, plane) + radius, im.width, radius, args.padding);
  }

  // Adds those of padded rows [r0, r1) that the item's rows take their values from.
  void add_padded(int64_t r0, int64_t r1) {
    auto ours = [&](int64_t r) {
      const int64_t p = padded_index(r, args.images.height, args.padding);
      return p >= p0 && p < p1;
    };
    while (r0 < r1 && !ours(r0)) ++r0;
    while (r0 < r1 && !ours(r1 - 1)) --r1;
    int64_t begun = r0, done = r0;
    for (int64_t q = most(r0 - radius, 0); r0 < r1 && q < least(r1 + radius, args.images.height); ++q) {
      for (; begun < least(q + radius + 1, r1); ++begun) clear(begun);
      add_row(q, r0, r1);
      if (done <= q - radius && done < r1) fold(done++);
    }
    while (done < r1) fold(done++);
  }

  void operator()(int64_t batch, int64_t band, void* image_grad) {
    const ImagesView& im = args.images;
    b = batch, p0 = band * band_rows, p1 = least(p0 + band_rows, im.height);
    std::memset(totals.data, 0, size_t(planes * band_rows * im.width) * sizeof(A));
    if (args.padding != Padding::zeros) add_padded(-radius, 0);
    add_padded(p0, p1);
    if (args.padding != Padding::zeros) add_padded(im.height, im.height + radius);
    for (int64_t plane = 0; plane < planes; ++plane)
      for (int64_t p = p0; p < p1; ++p)
        store_stored(image_grad, im.scalar, ((b * planes + plane) * im.height + p) * im.width, total_row(plane, p),
                     im.width);
  }
};

// Whether AdjoiningImages takes the call.
inline bool images_by_tiles(const AdaptiveFuseArgs& args) {
  return all_taps_adjoin(args) && args.images.width >= kTilePixels;
}

template <class A> void backward_images_adjoining(const AdaptiveFuseArgs& args, const GradView& grad, void* image_grad,
                                                  int64_t begin, int64_t end) {
  AdjoiningImages<A> backward(args, grad);
  const int64_t bands = AdjoiningImages<A>::bands(args);
  for (int64_t index = begin; index < end; ++index) backward(index / bands, index % bands, image_grad);
}

}  // namespace
}  // namespace FFMEF_ISA
}  // namespace ffmef
