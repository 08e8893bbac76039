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

}  // namespace
}  // namespace FFMEF_ISA
}  // namespace ffmef
