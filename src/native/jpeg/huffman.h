// See huffman.c.
#pragma once
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <jpeglib.h>

// Declared in jpegint.h of libjpeg-turbo 3.1, which is not installed. Only `decode_mcu` is replaced.
struct jpeg_entropy_decoder {
  void (*start_pass)(j_decompress_ptr);
  boolean (*decode_mcu)(j_decompress_ptr, JBLOCKROW*);
  void (*others[2])(void);
  boolean insufficient_data;
};

enum { BYOL_CODE_BITS = 9, BYOL_PAIR_BITS = 11 };

// The lookup tables are small so that they stay in the L1 cache: all entries are used about equally often.
typedef struct {
  boolean built;
  UINT8 lengths[17], values[256];       // the JHUFF_TBL that it was built from
  uint32_t codes[1 << BYOL_CODE_BITS];  // by the next bits: one code
  uint32_t pairs[1 << BYOL_PAIR_BITS];  // by the next bits: two coefficients
  uint16_t runs[1 << BYOL_PAIR_BITS];   // by the next bits: how many coefficients are skipped at once
  uint32_t symbols[256];                // entries like those of `codes`, ordered by code
  int first[17];                        // by length: index in `symbols` minus code
  unsigned end[17];                     // by length: one more than the last code
} byol_huffman_table;

// The highest `left` bits of `bits` are the next ones to read; the last `padding` of them lie beyond the data's end.
typedef struct {
  const uint8_t *next, *end;
  uint64_t bits;
  int left, padding;
} byol_huffman_bits;

typedef struct {
  struct jpeg_entropy_decoder methods;  // first: cinfo->entropy points here
  byol_huffman_table dc[NUM_HUFF_TBLS], ac[NUM_HUFF_TBLS];
  byol_huffman_bits in;
  unsigned before[MAX_COMPS_IN_SCAN];  // DC of the last block, by component
  unsigned mcu, restarts, first_column, end_column;
  boolean gave_up;
  jmp_buf* failed;
} byol_huffman;

// To be called after jpeg_start_decompress (and jpeg_crop_scanline) and before the first row is read: replaces the
// entropy decoder if the image is sequential, has 8 bits and one scan. Only blocks with pixels in columns `left` to
// `right` get coefficients. On unexpected data the decoder sets `gave_up` and jumps to `failed`.
void byol_huffman_use(byol_huffman* huffman, j_decompress_ptr cinfo, unsigned left, unsigned right, jmp_buf* failed);
