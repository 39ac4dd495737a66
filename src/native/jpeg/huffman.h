// See huffman.c.
#pragma once
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <jpeglib.h>

// What jpegint.h of libjpeg-turbo 3.1, which is not installed, calls this. The library calls `decode_mcu` alone here.
struct jpeg_entropy_decoder {
  void (*start_pass)(j_decompress_ptr);
  boolean (*decode_mcu)(j_decompress_ptr, JBLOCKROW*);
  void (*others[2])(void);
  boolean insufficient_data;
};

enum { BYOL_CODE_BITS = 9, BYOL_PAIR_BITS = 11 };

// The arrays that are looked up are small, as every entry is about as likely as any other: all stay in the cache.
typedef struct {
  boolean built;
  UINT8 lengths[17], values[256];       // of JHUFF_TBL: what it was built from
  uint32_t codes[1 << BYOL_CODE_BITS];  // one code, by the next bits
  uint32_t pairs[1 << BYOL_PAIR_BITS];  // two coefficients
  uint16_t runs[1 << BYOL_PAIR_BITS];   // how far several coefficients go
  uint32_t symbols[256];                // in the order of their codes
  int first[17];                        // by length: what to add to a code for its index in `symbols`
  unsigned end[17];                     // by length: the first number that is no code
} byol_huffman_table;

// The next bits of the data, from the highest of `bits` on: `left` of them, the last `padding` of them after the data.
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

// Between jpeg_start_decompress (and jpeg_crop_scanline) and the first row: has the opened image decoded by this, if it
// is of the kind. Only blocks with pixels from column `left` on and before `right` get coefficients. If the data are not
// valid, it sets `gave_up` and jumps to `failed`.
void byol_huffman_use(byol_huffman* huffman, j_decompress_ptr cinfo, unsigned left, unsigned right, jmp_buf* failed);
