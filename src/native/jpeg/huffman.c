// Decodes the Huffman codes of sequential 8-bit JPEGs (ITU-T T.81, annex F.2.2) in place of libjpeg-turbo's decoder,
// which finds one code at a time and then takes the bits of its value: here one look at the next bits finds two
// coefficients. The rest of the library works on as it does, on the same coefficients. Where the data are not as they
// should be (damage, a marker out of place, their end), it gives up, and the caller starts over with the library's.
#include "huffman.h"

#include <string.h>

extern const int jpeg_natural_order[];

enum { END_OF_BLOCK = 64, INVALID = 127, RUNS_NOT_BUILT = 255 << 8 };

// A code: its bits (0 where it has more than BYOL_CODE_BITS), those of the value that follows, and how many coefficients
// before it are zero.
#define CODE(length, size, run) ((uint32_t)(length) | (uint32_t)(size) << 8 | (uint32_t)(run) << 16)
#define LENGTH(code) ((int)((code)&255))
#define SIZE(code) ((int)((code) >> 8 & 255))
#define RUN(code) ((int)((code) >> 16))

// Two coefficients, from the next one to be decoded, or one and a zero after it: their bits, their positions, how many
// are done then, their values. The second one's position is at least 64 where there are not two: at the end of a block,
// maybe after a first one (`more` is 1), or where their bits are too many (`more` is 0).
#define PAIR(length, first, second, more, value, other)                                             \
  ((uint32_t)(length) | (uint32_t)(first) << 4 | (uint32_t)(second) << 8 | (uint32_t)(more) << 15 | \
   ((uint32_t)(other)&127) << 16 | (uint32_t)(value) << 23)
#define FIRST(pair) ((int)((pair) >> 4 & 15))
#define SECOND(pair) ((int)((pair) >> 8 & 127))
#define MORE(pair) ((int)((pair) >> 15 & 1))
#define VALUE(pair) ((int32_t)(pair) >> 23)
#define OTHER(pair) ((int32_t)((pair) << 9) >> 25)
#define PAIR_LENGTH(pair) ((int)((pair)&15))
#define PAIR_NOT_BUILT PAIR(0, 0, INVALID, 0, 1, 0)
enum { MOST_SIZE = 8, MOST_OTHER_SIZE = 6 };  // of the values: a bit more for the sign

// The number that `size` bits stand for (T.81, table F.1), which are the highest of `bits`.
static inline int extended(uint64_t bits, int size) {
  const int value = (int)(bits >> 1 >> (63 - size));
  return value < 1 << size >> 1 ? value - (1 << size) + 1 : value;
}

// A code of more than BYOL_CODE_BITS.
static uint32_t longer(const byol_huffman_table* table, uint64_t bits) {
  for (int length = BYOL_CODE_BITS + 1; length <= 16; length++) {
    const unsigned code = (unsigned)(bits >> (64 - length));
    if (code < table->end[length]) return table->symbols[table->first[length] + (int)code];
  }
  return CODE(1, 0, INVALID);
}

static inline uint32_t code_of(const byol_huffman_table* table, uint64_t bits) {
  const uint32_t code = table->codes[bits >> (64 - BYOL_CODE_BITS)];
  return __builtin_expect(LENGTH(code) > 0, 1) ? code : longer(table, bits);
}

// Codes of one length are consecutive, after the shorter ones. The library has checked that they fit. What is built of
// them stays for further images with the same codes.
static void build(byol_huffman_table* table, const JHUFF_TBL* codes, boolean ac) {
  if (table->built && !memcmp(table->lengths, codes->bits, sizeof table->lengths) &&
      !memcmp(table->values, codes->huffval, sizeof table->values)) {
    return;
  }
  memcpy(table->lengths, codes->bits, sizeof table->lengths);
  memcpy(table->values, codes->huffval, sizeof table->values);
  memset(table->codes, 0, sizeof table->codes);
  unsigned code = 0;
  int index = 0;
  for (int length = 1; length <= 16; length++, code <<= 1) {
    table->first[length] = index - (int)code;
    for (int i = 0; i < codes->bits[length]; i++, index++, code++) {
      const int symbol = codes->huffval[index], size = symbol & 15, run = ac ? symbol >> 4 : 0;
      const uint32_t entry = CODE(length, size, ac && size == 0 && run < 15 ? END_OF_BLOCK : run);
      table->symbols[index] = entry;
      const int spare = BYOL_CODE_BITS - length;
      for (int rest = 0; spare >= 0 && rest < 1 << spare; rest++) table->codes[(code << spare) + (unsigned)rest] = entry;
    }
    table->end[length] = code;
  }
  for (int i = 0; i < 1 << BYOL_PAIR_BITS; i++) table->pairs[i] = PAIR_NOT_BUILT;
  for (int i = 0; i < 1 << BYOL_PAIR_BITS; i++) table->runs[i] = RUNS_NOT_BUILT;
  table->built = TRUE;
}

// These two are built when they are first needed: a small image needs few.
static uint32_t pair_of(const byol_huffman_table* table, uint64_t bits) {
  const uint32_t one = code_of(table, bits);
  const int length = LENGTH(one) + SIZE(one), first = RUN(one);
  if (LENGTH(one) <= BYOL_PAIR_BITS && first == END_OF_BLOCK) return PAIR(LENGTH(one), 0, INVALID, 1, 0, 0);
  if (length > BYOL_PAIR_BITS || first == INVALID || SIZE(one) > MOST_SIZE) return PAIR(0, 0, INVALID, 0, 0, 0);
  const int value = extended(bits << LENGTH(one), SIZE(one));
  const uint32_t two = code_of(table, bits << length);
  const int both = length + LENGTH(two) + SIZE(two);
  if (both > BYOL_PAIR_BITS || RUN(two) == INVALID || SIZE(two) > MOST_OTHER_SIZE) return PAIR(length, first, first + 1, 0, value, 0);
  if (RUN(two) < END_OF_BLOCK) {
    const int other = extended(bits << length << LENGTH(two), SIZE(two));
    return PAIR(both, first, first + 1 + RUN(two), 1, value, other);
  }
  // The end after a run of 16 zeros, which no encoder writes, is left alone.
  return value ? PAIR(both, first, INVALID, 1, value, 0) : PAIR(length, first, first + 1, 0, value, 0);
}

// All coefficients whose codes are in the next bits, whatever their values: the bits, at most 26, and 256 times how many
// coefficients are done then: 128 more at the end of the block, 64 where it is no code.
static uint16_t runs_of(const byol_huffman_table* table, uint64_t bits) {
  int length = 0, done = 0;
  for (;;) {
    const uint32_t code = length < BYOL_PAIR_BITS ? code_of(table, bits << length) : CODE(0, 0, INVALID);
    if (length + LENGTH(code) > BYOL_PAIR_BITS || RUN(code) == INVALID) break;
    if (RUN(code) == END_OF_BLOCK) return (uint16_t)((length + LENGTH(code)) | (done + 128) << 8);
    if (done + RUN(code) + 1 > 63) break;
    length += LENGTH(code) + SIZE(code);
    done += RUN(code) + 1;
  }
  return (uint16_t)(length | (done ? done : 64) << 8);
}

// Sees to 56 to 63 bits. 0xff is data where a zero follows, which is not; anything else that follows makes it a
// marker, at which the data end.
static inline void fill(byol_huffman_bits* in) {
  if (in->end - in->next >= 8) {
    const uint64_t ones = 0x0101010101010101;
    uint64_t word;
    memcpy(&word, in->next, 8);
    word = __builtin_bswap64(word);
    if (!((~word - ones) & word & ones << 7)) {  // no byte is 0xff
      const int bytes = (63 - in->left) >> 3;
      in->bits |= word >> in->left;
      in->next += bytes;
      in->left += bytes * 8;
      return;
    }
  }
  for (; in->left < 56; in->left += 8) {
    const boolean data = in->next < in->end;
    if (!data || (in->next[0] == 0xff && !(in->end - in->next > 1 && in->next[1] == 0))) {
      in->padding += 8;
      continue;
    }
    in->bits |= (uint64_t)in->next[0] << (56 - in->left);
    in->next += in->next[0] == 0xff ? 2 : 1;
  }
}

static inline void drop(byol_huffman_bits* in, int bits) {
  in->bits <<= bits;
  in->left -= bits;
}

// Reads one code, which has at most 31 bits with its value.
static inline uint32_t read(byol_huffman_bits* in, const byol_huffman_table* table, int* value) {
  fill(in);
  const uint32_t code = code_of(table, in->bits);
  drop(in, LENGTH(code));
  *value = extended(in->bits, SIZE(code));
  drop(in, SIZE(code));
  return code;
}

// Reads the coefficients of a block from position `at` on, in zigzag order. False where they are not valid.
static inline boolean read_block(byol_huffman_bits* in, byol_huffman_table* table, JCOEF* block) {
  for (int at = 1;;) {
    fill(in);
#pragma GCC unroll 5
    for (int i = 0; i < 5; i++) {  // 5 * BYOL_PAIR_BITS are there
      const uint64_t look = in->bits >> (64 - BYOL_PAIR_BITS);
      const uint32_t pair = table->pairs[look];
      const int first = at + FIRST(pair), second = at + SECOND(pair);
      if (second >= DCTSIZE2) {
        if (at == DCTSIZE2) return TRUE;
        if (MORE(pair) && SECOND(pair) == INVALID && first + (VALUE(pair) != 0) < DCTSIZE2) {
          block[jpeg_natural_order[first]] = (JCOEF)VALUE(pair);
          drop(in, PAIR_LENGTH(pair));
          return TRUE;
        }
        if (pair == PAIR_NOT_BUILT) table->pairs[look] = pair_of(table, look << (64 - BYOL_PAIR_BITS));
        int value;
        const uint32_t code = read(in, table, &value);
        at += RUN(code);
        if (at >= DCTSIZE2) return RUN(code) == END_OF_BLOCK;
        block[jpeg_natural_order[at++]] = (JCOEF)value;
        break;
      }
      drop(in, PAIR_LENGTH(pair));
      block[jpeg_natural_order[first]] = (JCOEF)VALUE(pair);
      block[jpeg_natural_order[second]] = (JCOEF)OTHER(pair);
      at = second + MORE(pair);
    }
  }
}

// Passes over the coefficients of a block but the first. False where they are not valid.
static inline boolean pass_block(byol_huffman_bits* in, byol_huffman_table* table) {
  for (int at = 1; at < DCTSIZE2;) {
    if (in->left < 32) fill(in);
    const uint64_t look = in->bits >> (64 - BYOL_PAIR_BITS);
    const unsigned runs = table->runs[look];
    const int after = at + (int)(runs >> 8);
    if (after <= DCTSIZE2) {
      drop(in, (int)(runs & 255));
      at = after;
    } else if (after >= at + 128 && after - 128 < DCTSIZE2) {
      drop(in, (int)(runs & 255));
      return TRUE;
    } else {
      if (runs == RUNS_NOT_BUILT) table->runs[look] = runs_of(table, look << (64 - BYOL_PAIR_BITS));
      int value;
      const uint32_t code = read(in, table, &value);
      at += RUN(code) + 1;
      if (at > DCTSIZE2) return RUN(code) == END_OF_BLOCK;
    }
  }
  return TRUE;
}

// Passes over a restart marker. False unless the right one is next.
static boolean restart(byol_huffman* state) {
  byol_huffman_bits* in = &state->in;
  const boolean found = in->left - in->padding < 8 && in->end - in->next >= 2 && in->next[0] == 0xff &&
                        in->next[1] == 0xd0 + state->restarts++ % 8;
  *in = (byol_huffman_bits){in->next + (found ? 2 : 0), in->end, 0, 0, 0};
  memset(state->before, 0, sizeof state->before);
  return found;
}

// Blocks are zero before; `blocks` is null where all of them are to be passed over.
static boolean decode_mcu(j_decompress_ptr cinfo, JBLOCKROW* blocks) {
  byol_huffman* state = (byol_huffman*)cinfo->entropy;
  const boolean restarts = cinfo->restart_interval && state->mcu && state->mcu % cinfo->restart_interval == 0;
  boolean valid = !restarts || restart(state);
  const unsigned column = state->mcu++ % cinfo->MCUs_per_row;
  const boolean wanted = blocks && state->first_column <= column && column < state->end_column;
  byol_huffman_bits in = state->in;  // a copy, for the compiler to keep in registers
  for (int i = 0; i < cinfo->blocks_in_MCU && valid; i++) {
    const int component = cinfo->MCU_membership[i];
    const jpeg_component_info* info = cinfo->cur_comp_info[component];
    int difference;
    const boolean known = RUN(read(&in, &state->dc[info->dc_tbl_no], &difference)) != INVALID;
    const unsigned dc = state->before[component] += (unsigned)difference;
    valid = known && dc + (1u << 30) < 1u << 31;  // the library refuses what overflows
    if (wanted) (*blocks[i])[0] = (JCOEF)dc;
    byol_huffman_table* table = &state->ac[info->ac_tbl_no];
    const boolean needed = wanted && info->DCT_scaled_size > 1;
    valid = valid && (needed ? read_block(&in, table, *blocks[i]) : pass_block(&in, table));
  }
  if (!valid || in.left < in.padding) {
    state->gave_up = TRUE;
    longjmp(*state->failed, 1);
  }
  state->in = in;
  return TRUE;
}

void byol_huffman_use(byol_huffman* huffman, j_decompress_ptr cinfo, unsigned left, unsigned right, jmp_buf* failed) {
  const boolean whole_blocks = cinfo->Ss == 0 && cinfo->Se == DCTSIZE2 - 1 && cinfo->Ah == 0 && cinfo->Al == 0;
  if (cinfo->progressive_mode || cinfo->arith_code || cinfo->data_precision != 8 || !whole_blocks ||
      jpeg_has_multiple_scans(cinfo)) {
    return;
  }
  for (int i = 0; i < cinfo->comps_in_scan; i++) {
    const jpeg_component_info* info = cinfo->cur_comp_info[i];
    build(&huffman->dc[info->dc_tbl_no], cinfo->dc_huff_tbl_ptrs[info->dc_tbl_no], FALSE);
    build(&huffman->ac[info->ac_tbl_no], cinfo->ac_huff_tbl_ptrs[info->ac_tbl_no], TRUE);
  }
  huffman->methods = *cinfo->entropy;
  huffman->methods.decode_mcu = decode_mcu;
  const uint8_t* data = cinfo->src->next_input_byte;
  huffman->in = (byol_huffman_bits){data, data + cinfo->src->bytes_in_buffer, 0, 0, 0};
  huffman->mcu = huffman->restarts = 0;
  memset(huffman->before, 0, sizeof huffman->before);
  const int blocks = cinfo->comps_in_scan == 1 ? 1 : cinfo->max_h_samp_factor;  // of an MCU, side by side
  const unsigned width = (unsigned)(blocks * cinfo->min_DCT_scaled_size);
  huffman->first_column = left / width;
  huffman->end_column = (right + width - 1) / width;
  huffman->failed = failed;
  cinfo->entropy = &huffman->methods;
}
