// Decodes the Huffman codes of sequential 8-bit JPEGs (ITU-T T.81, annex F.2.2), which is most of the time that a large
// photo takes. It replaces libjpeg-turbo's entropy decoder alone: the inverse DCT and what follows get the same
// coefficients. The library looks up one code and then reads the bits of its value; here one lookup gives two
// coefficients with their values. On unexpected data (damage, a misplaced marker, an early end) it gives up, and the
// caller decodes the image again with the library's decoder, whose pixels of damaged images it thereby keeps.
#include "huffman.h"

#include <string.h>

extern const int jpeg_natural_order[];

enum { END_OF_BLOCK = 64, INVALID = 127, RUNS_NOT_BUILT = 255 << 8 };

// An entry of `codes` and `symbols`: the number of bits of a code (0 if more than BYOL_CODE_BITS), the number of bits
// of the value that follows it, and how many zero coefficients come before the value.
#define CODE(length, size, run) ((uint32_t)(length) | (uint32_t)(size) << 8 | (uint32_t)(run) << 16)
#define LENGTH(code) ((int)((code)&255))
#define SIZE(code) ((int)((code) >> 8 & 255))
#define RUN(code) ((int)((code) >> 16))

// An entry of `pairs`, two coefficients: the number of bits of both, their positions relative to the next coefficient,
// and their values. What `more` means depends on `second`:
// - below 64: 1 if there are two coefficients, 0 if only one fits (the second is then a zero that the next lookup
//   writes again);
// - INVALID: 1 if the block ends here, after the first coefficient if its value is not 0; 0 if there is no such entry,
//   and the code is to be read on its own.
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
enum { MOST_SIZE = 8, MOST_OTHER_SIZE = 6 };  // bits of the values, for which an entry has one more: the sign

// The value that the highest `size` bits of `bits` encode (T.81, figure F.12).
static inline int extended(uint64_t bits, int size) {
  const int value = (int)(bits >> 1 >> (63 - size));
  return value < 1 << size >> 1 ? value - (1 << size) + 1 : value;
}

// The code at the start of `bits` if it has more than BYOL_CODE_BITS (T.81, figure F.16).
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

// Codes of one length are consecutive and follow the shorter ones (T.81, annex C). jpeg_start_decompress has checked
// them. A table is kept for the next image: most images of a camera or program have the same codes.
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
      uint32_t* looked_up = table->codes + (spare < 0 ? 0 : code << spare);
      for (int rest = 0; spare >= 0 && rest < 1 << spare; rest++) looked_up[rest] = entry;
    }
    table->end[length] = code;
  }
  for (int i = 0; i < 1 << BYOL_PAIR_BITS; i++) table->pairs[i] = PAIR_NOT_BUILT;
  for (int i = 0; i < 1 << BYOL_PAIR_BITS; i++) table->runs[i] = RUNS_NOT_BUILT;
  table->built = TRUE;
}

// Entries of `pairs` and `runs` are made when they are first looked up: a small image needs few of them.
static uint32_t pair_of(const byol_huffman_table* table, uint64_t bits) {
  const uint32_t one = code_of(table, bits);
  const int length = LENGTH(one) + SIZE(one), first = RUN(one);
  if (LENGTH(one) <= BYOL_PAIR_BITS && first == END_OF_BLOCK) return PAIR(LENGTH(one), 0, INVALID, 1, 0, 0);
  if (length > BYOL_PAIR_BITS || first == INVALID || SIZE(one) > MOST_SIZE) return PAIR(0, 0, INVALID, 0, 0, 0);
  const int value = extended(bits << LENGTH(one), SIZE(one));
  const uint32_t two = code_of(table, bits << length);
  const int both = length + LENGTH(two) + SIZE(two);
  const uint32_t alone = PAIR(length, first, first + 1, 0, value, 0);
  if (both > BYOL_PAIR_BITS || RUN(two) == INVALID || SIZE(two) > MOST_OTHER_SIZE) return alone;
  if (RUN(two) < END_OF_BLOCK) {
    const int other = extended(bits << length << LENGTH(two), SIZE(two));
    return PAIR(both, first, first + 1 + RUN(two), 1, value, other);
  }
  // A value of 0 is a run of 16 zeros, after which an encoder does not end the block.
  return value ? PAIR(both, first, INVALID, 1, value, 0) : alone;
}

// An entry of `runs`, for blocks that are skipped: the bits of all codes that are found, with their values (at most 26
// bits), plus 256 times the number of coefficients, zeros included: 128 more if the block ends there, 64 if no code is
// found.
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

// Makes sure that there are at least 56 bits. A zero byte after 0xff is skipped; any other byte makes it a marker, which
// ends the data (T.81, annex B.1.1.5).
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

// Reads a code and its value, together at most 31 bits.
static inline uint32_t read_code(byol_huffman_bits* in, const byol_huffman_table* table, int* value) {
  fill(in);
  const uint32_t code = code_of(table, in->bits);
  drop(in, LENGTH(code));
  *value = extended(in->bits, SIZE(code));
  drop(in, SIZE(code));
  return code;
}

// Reads the coefficients of a block after the first. False if they are invalid.
static inline boolean read_block(byol_huffman_bits* in, byol_huffman_table* table, JCOEF* block) {
  for (int at = 1;;) {
    fill(in);
#pragma GCC unroll 5
    for (int i = 0; i < 5; i++) {  // fill() gives enough bits for 5 lookups
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
        const uint32_t code = read_code(in, table, &value);
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

// Skips the coefficients of a block after the first. False if they are invalid.
static inline boolean skip_block(byol_huffman_bits* in, byol_huffman_table* table) {
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
      const uint32_t code = read_code(in, table, &value);
      at += RUN(code) + 1;
      if (at > DCTSIZE2) return RUN(code) == END_OF_BLOCK;
    }
  }
  return TRUE;
}

// Skips a restart marker. False unless the expected one is next.
static boolean restart(byol_huffman* state) {
  byol_huffman_bits* in = &state->in;
  const boolean found = in->left - in->padding < 8 && in->end - in->next >= 2 && in->next[0] == 0xff &&
                        in->next[1] == 0xd0 + state->restarts++ % 8;
  *in = (byol_huffman_bits){in->next + (found ? 2 : 0), in->end, 0, 0, 0};
  memset(state->before, 0, sizeof state->before);
  return found;
}

// As the library's decode_mcu: the blocks are zero before, and `blocks` is null if all of them are skipped.
static boolean decode_mcu(j_decompress_ptr cinfo, JBLOCKROW* blocks) {
  byol_huffman* state = (byol_huffman*)cinfo->entropy;
  const boolean restarts = cinfo->restart_interval && state->mcu && state->mcu % cinfo->restart_interval == 0;
  boolean valid = !restarts || restart(state);
  const unsigned column = state->mcu++ % cinfo->MCUs_per_row;
  const boolean wanted = blocks && state->first_column <= column && column < state->end_column;
  byol_huffman_bits in = state->in;  // a copy, so that the compiler keeps it in registers
  for (int i = 0; i < cinfo->blocks_in_MCU && valid; i++) {
    const int component = cinfo->MCU_membership[i];
    const jpeg_component_info* info = cinfo->cur_comp_info[component];
    int difference;
    const boolean known = RUN(read_code(&in, &state->dc[info->dc_tbl_no], &difference)) != INVALID;
    const unsigned dc = state->before[component] += (unsigned)difference;
    valid = known && dc + (1u << 30) < 1u << 31;  // the library refuses what overflows
    if (wanted) (*blocks[i])[0] = (JCOEF)dc;
    byol_huffman_table* table = &state->ac[info->ac_tbl_no];
    const boolean needed = wanted && info->DCT_scaled_size > 1;
    valid = valid && (needed ? read_block(&in, table, *blocks[i]) : skip_block(&in, table));
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
  const int blocks = cinfo->comps_in_scan == 1 ? 1 : cinfo->max_h_samp_factor;  // side by side in an MCU
  const unsigned width = (unsigned)(blocks * cinfo->min_DCT_scaled_size);
  huffman->first_column = left / width;
  huffman->end_column = (right + width - 1) / width;
  huffman->failed = failed;
  cinfo->entropy = &huffman->methods;
}
