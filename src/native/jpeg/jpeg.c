// Decoding with libjpeg-turbo. Its errors arrive through longjmp, which stays inside this file: every
// function returns 0, or 1 with the message kept for byol_jpeg_message(). One object serves one thread.
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "huffman.h"

typedef struct {
  struct jpeg_decompress_struct cinfo;
  byol_huffman huffman;
  const unsigned char* bytes;  // of the opened image
  unsigned long length;
  struct jpeg_error_mgr errors;
  struct jpeg_progress_mgr progress;
  jmp_buf failed;
  int most_scans;
  char message[JMSG_LENGTH_MAX];
} byol_jpeg;

static void fail(j_common_ptr cinfo) {
  byol_jpeg* jpeg = cinfo->client_data;
  jpeg->errors.format_message(cinfo, jpeg->message);
  longjmp(jpeg->failed, 1);
}

// Warnings are about damage that Pillow passes over, too.
static void ignore(j_common_ptr cinfo, int level) {
  (void)cinfo;
  (void)level;
}

static void count_scans(j_common_ptr cinfo) {
  byol_jpeg* jpeg = cinfo->client_data;
  if (jpeg->cinfo.input_scan_number <= jpeg->most_scans) return;
  snprintf(jpeg->message, sizeof jpeg->message, "found more than %d scans", jpeg->most_scans);
  longjmp(jpeg->failed, 1);
}

static int create(byol_jpeg* jpeg) {
  if (setjmp(jpeg->failed)) return 1;
  jpeg_create_decompress(&jpeg->cinfo);
  return 0;
}

// Null where there is no memory.
byol_jpeg* byol_jpeg_new(int most_scans) {
  byol_jpeg* jpeg = calloc(1, sizeof *jpeg);
  if (!jpeg) return NULL;
  jpeg->cinfo.err = jpeg_std_error(&jpeg->errors);
  jpeg->errors.error_exit = fail;
  jpeg->errors.emit_message = ignore;
  jpeg->cinfo.client_data = jpeg;
  if (create(jpeg)) {
    free(jpeg);
    return NULL;
  }
  jpeg->most_scans = most_scans;
  jpeg->progress.progress_monitor = count_scans;
  jpeg->cinfo.progress = &jpeg->progress;
  return jpeg;
}

void byol_jpeg_free(byol_jpeg* jpeg) {
  jpeg_destroy_decompress(&jpeg->cinfo);
  free(jpeg);
}

const char* byol_jpeg_message(const byol_jpeg* jpeg) { return jpeg->message; }

// Reads the header of `bytes`, which must stay until byol_jpeg_decode is done with this image.
// `shape` becomes width, height, channels.
int byol_jpeg_open(byol_jpeg* jpeg, const unsigned char* bytes, unsigned long length, unsigned shape[3]) {
  struct jpeg_decompress_struct* cinfo = &jpeg->cinfo;
  if (setjmp(jpeg->failed)) return 1;
  jpeg->bytes = bytes;
  jpeg->length = length;
  jpeg_abort_decompress(cinfo);
  jpeg_mem_src(cinfo, bytes, length);
  jpeg_read_header(cinfo, TRUE);
  shape[0] = cinfo->image_width;
  shape[1] = cinfo->image_height;
  shape[2] = cinfo->num_components;
  return 0;
}

// As byol_jpeg_decode; with the Huffman decoder of huffman.c where it applies if `ours`, else with libjpeg-turbo's.
static int decode(byol_jpeg* jpeg, unsigned reduction, unsigned region[4], unsigned char* out, unsigned long capacity,
                  int ours) {
  struct jpeg_decompress_struct* cinfo = &jpeg->cinfo;
  if (setjmp(jpeg->failed)) return 1;
  cinfo->scale_num = 1;
  cinfo->scale_denom = reduction;
  cinfo->out_color_space = cinfo->num_components == 4 ? JCS_CMYK : JCS_RGB;
  jpeg_start_decompress(cinfo);
  // Chroma is interpolated between neighbors, which at the border of a cropped row are taken to be equal.
  const unsigned margin = 4;
  JDIMENSION left = region[0] > margin ? region[0] - margin : 0;
  JDIMENSION right = region[0] + region[2] + margin;
  JDIMENSION width = (right < cinfo->output_width ? right : cinfo->output_width) - left;
  if (width < cinfo->output_width) jpeg_crop_scanline(cinfo, &left, &width);
  if (ours) byol_huffman_use(&jpeg->huffman, cinfo, left, left + width, &jpeg->failed);
  if (region[1] > 0) jpeg_skip_scanlines(cinfo, region[1]);
  const unsigned long row = (unsigned long)width * cinfo->output_components;
  if (row * region[3] > capacity) {
    snprintf(jpeg->message, sizeof jpeg->message, "found room for %lu bytes, expected %lu", capacity, row * region[3]);
    return 1;
  }
  for (unsigned done = 0; done < region[3];) {
    JSAMPROW rows[16];
    unsigned some = region[3] - done < 16 ? region[3] - done : 16;
    for (unsigned i = 0; i < some; i++) rows[i] = out + (done + i) * row;
    done += jpeg_read_scanlines(cinfo, rows, some);
  }
  region[0] = left;
  region[2] = width;
  return 0;
}

// Decodes the opened image at 1/`reduction` of its size (1, 2, 4 or 8), and of the result rows `region[1]` to
// `region[1] + region[3]`, and of these at least columns `region[0]` to `region[0] + region[2]`: `region` becomes what
// was decoded, `out` (of `capacity` bytes) its pixels without padding, RGB or, from four channels, CMYK. What was not
// asked for may differ from a decoder of all. Nothing after the last row is read: only what comes before can fail.
int byol_jpeg_decode(byol_jpeg* jpeg, unsigned reduction, unsigned region[4], unsigned char* out,
                     unsigned long capacity, int ours) {
  jpeg->huffman.gave_up = FALSE;
  const int status = decode(jpeg, reduction, region, out, capacity, ours);
  if (!jpeg->huffman.gave_up) return status;
  unsigned shape[3];
  return byol_jpeg_open(jpeg, jpeg->bytes, jpeg->length, shape) || decode(jpeg, reduction, region, out, capacity, 0);
}

// For tests: whether the last image was decoded by our Huffman decoder to the end.
int byol_jpeg_is_ours(const byol_jpeg* jpeg) {
  return !jpeg->huffman.gave_up && jpeg->cinfo.entropy == &jpeg->huffman.methods;
}

typedef struct {
  struct jpeg_error_mgr errors;
  jmp_buf failed;
  char* message;
} encoder_errors;

static void fail_encoding(j_common_ptr cinfo) {
  encoder_errors* errors = cinfo->client_data;
  errors->errors.format_message(cinfo, errors->message);
  longjmp(errors->failed, 1);
}

// Encodes pixels of 1 (gray) or 3 (RGB) bytes; the chroma of a quality from 90 on is not subsampled. `out` becomes memory
// for byol_jpeg_release, also after an error, whose message is written to `message` (JMSG_LENGTH_MAX bytes).
int byol_jpeg_encode(const unsigned char* pixels, const unsigned shape[3], int quality, unsigned char** out,
                     unsigned long* length, char* message) {
  struct jpeg_compress_struct cinfo;
  encoder_errors errors;
  memset(&cinfo, 0, sizeof cinfo);
  cinfo.err = jpeg_std_error(&errors.errors);
  errors.errors.error_exit = fail_encoding;
  errors.message = message;
  cinfo.client_data = &errors;
  *out = NULL;
  *length = 0;
  if (setjmp(errors.failed)) {
    jpeg_destroy_compress(&cinfo);
    *out = NULL;  // it may have been freed when the buffer grew
    return 1;
  }
  jpeg_create_compress(&cinfo);
  jpeg_mem_dest(&cinfo, out, length);
  cinfo.image_width = shape[0];
  cinfo.image_height = shape[1];
  cinfo.input_components = shape[2];
  cinfo.in_color_space = shape[2] == 1 ? JCS_GRAYSCALE : JCS_RGB;
  jpeg_set_defaults(&cinfo);
  jpeg_set_quality(&cinfo, quality, TRUE);
  if (quality >= 90) cinfo.comp_info[0].h_samp_factor = cinfo.comp_info[0].v_samp_factor = 1;
  cinfo.optimize_coding = TRUE;
  jpeg_start_compress(&cinfo, TRUE);
  while (cinfo.next_scanline < cinfo.image_height) {
    JSAMPROW row = (JSAMPROW)(pixels + (unsigned long)cinfo.next_scanline * shape[0] * shape[2]);
    jpeg_write_scanlines(&cinfo, &row, 1);
  }
  jpeg_finish_compress(&cinfo);
  jpeg_destroy_compress(&cinfo);
  return 0;
}

void byol_jpeg_release(unsigned char* bytes) { free(bytes); }
