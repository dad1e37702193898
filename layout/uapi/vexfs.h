/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT OR Apache-2.0 */
/*
 * VexFS: the binary requests of the session files DIR/.vexfs/put and DIR/.vexfs/search.
 *
 * This header is the one definition; the Rust side is made from it (layout/build.rs).
 * To use a session file: open it read-write, write one request (in one or several writes,
 * VEXFS_REQUEST_BYTES_MAX in all), then read the reply from offset 0 to its end.
 * A handle takes one request at a time; the first read after a write carries it out, and
 * the next write after that begins a new request. A failed request gives a reply whose errno is
 * not 0 and whose message is a sentence for people; no part of a failed put is done.
 *
 * All integers are little-endian and of fixed width. Reserved fields are 0 when
 * written; a request with another value there, an unknown flag or another version is refused
 * with EINVAL. Paths are bytes without NUL, relative ("a/b", no leading slash, no "." or ".."),
 * not NUL-terminated. No request begins with '{', which would make it JSON.
 *
 * Vectors given as f32 to a collection of another element type are converted: to f16 by rounding to
 * nearest (beyond 65504 is refused); to i8 if all elements are whole numbers in -128..=127, else only
 * with the cosine metric, which knows no scale: the vector is scaled so that its largest magnitude
 * is 127, and rounded. NaN, infinite elements and, for cosine, vectors of norm 0 are refused.
 *
 * Parts follow the fixed structure without padding, in the order named; total_bytes counts
 * everything, and a request that is shorter or longer is refused.
 */
#ifndef _UAPI_VEXFS_H
#define _UAPI_VEXFS_H

#include <linux/types.h>

#define VEXFS_UAPI_VERSION	1

/* First 8 bytes of each request and reply. */
#define VEXFS_PUT_MAGIC			"VEXFSPU1"
#define VEXFS_PUT_REPLY_MAGIC		"VEXFSPR1"
#define VEXFS_SEARCH_MAGIC		"VEXFSSE1"
#define VEXFS_SEARCH_REPLY_MAGIC	"VEXFSSR1"

/* Element types of vectors; little-endian, no padding between elements. */
#define VEXFS_ELEMENT_F32	1	/* IEEE 754 binary32 */
#define VEXFS_ELEMENT_F16	2	/* IEEE 754 binary16 */
#define VEXFS_ELEMENT_I8	3	/* two's complement */
#define VEXFS_ELEMENT_B1	4	/* reserved: bits; refused for now */

/* Metrics; a smaller distance is nearer. */
#define VEXFS_METRIC_L2		1	/* sum (a-b)^2 */
#define VEXFS_METRIC_IP		2	/* -(a.b) */
#define VEXFS_METRIC_COSINE	3	/* 1 - a.b / (|a||b|) */

/* Bounds. */
#define VEXFS_DIM_MAX			16384
#define VEXFS_K_MAX			10000
#define VEXFS_PUT_ROWS_MAX		65536
#define VEXFS_PATH_BYTES_MAX		4095
#define VEXFS_NAME_BYTES_MAX		255
#define VEXFS_MESSAGE_BYTES_MAX		1024
#define VEXFS_REQUEST_BYTES_MAX		67108864	/* 64 MiB */

/* vexfs_put_request.flags */
#define VEXFS_PUT_APPEND	1	/* keep the file's rows and add to them */
#define VEXFS_PUT_PUBLISH_AS	2	/* rename the file over publish_as in the same commit */

/* vexfs_search_request.flags */
#define VEXFS_SEARCH_FRESH_ONLY	1	/* leave out rows whose file changed since their put */

/* vexfs_search_result.flags */
#define VEXFS_RESULT_STALE	1	/* the file changed after the row was put */

/**
 * A put: gives a file below the collection its rows. 64 bytes, followed by
 *   struct vexfs_put_row rows[row_count];
 *   vectors: row_count * dim elements, row-major;
 *   the file's path, file_bytes long, relative to the directory of the session file;
 *   publish_as, publish_as_bytes long: a name in the file's directory.
 *
 * Without VEXFS_PUT_APPEND the file's old rows die; with row_count 0 as well, that is all.
 * With VEXFS_PUT_PUBLISH_AS the file is renamed to publish_as, over what has that name:
 * rows, file and name come into being in one commit (a crash shows all of it or nothing).
 * Needs write permission on the file; to publish, write and search permission on its directory.
 */
struct vexfs_put_request {
	/** VEXFS_PUT_MAGIC. */
	__u8	magic[8];
	/** VEXFS_UAPI_VERSION. */
	__le32	version;
	/** VEXFS_PUT_*. */
	__le32	flags;
	/** Bytes of the whole request, this structure included. */
	__le64	total_bytes;
	/** Bytes of the file's path: 1 to VEXFS_PATH_BYTES_MAX. */
	__le32	file_bytes;
	/** Bytes of publish_as: 1 to VEXFS_NAME_BYTES_MAX with VEXFS_PUT_PUBLISH_AS, else 0. */
	__le32	publish_as_bytes;
	/** Rows: 0 to VEXFS_PUT_ROWS_MAX. */
	__le32	row_count;
	/** Elements of a vector; must be the collection's (any value if row_count is 0). */
	__le32	dim;
	/** Type of the elements: the collection's, or VEXFS_ELEMENT_F32, which is converted. */
	__u8	element;
	/** Zero. */
	__u8	reserved0[7];
	/** Zero. */
	__u8	reserved1[16];
};

/** One row of a put: what the vector stands for. 32 bytes. */
struct vexfs_put_row {
	/** First byte of the passage in the file. */
	__le64	offset;
	/** Bytes of the passage; offset + length is at most 2^63 - 1. */
	__le64	length;
	/** 64 bits for the user; a search may ask for rows with any of some bits. */
	__le64	tag;
	/** Zero. */
	__le64	reserved;
};

/** The answer to a put. 64 bytes, followed by the message. */
struct vexfs_put_reply {
	/** VEXFS_PUT_REPLY_MAGIC. */
	__u8	magic[8];
	/** VEXFS_UAPI_VERSION. */
	__le32	version;
	/** 0, or a positive Linux errno; then only total_bytes and message mean something. */
	__le32	error;
	/** Bytes of the whole reply. */
	__le64	total_bytes;
	/** The commit that will make the rows durable (fsync of any file forces it). */
	__le64	epoch;
	/** The file's inode number. */
	__le64	ino;
	/** Row id of the first row; the others follow by one. 0 if count is 0. */
	__le64	first_row;
	/** Rows put. */
	__le32	count;
	/** Bytes of the message: 0 to VEXFS_MESSAGE_BYTES_MAX, UTF-8. */
	__le32	message_bytes;
	/** Zero. */
	__le64	reserved;
};

/**
 * A search. 64 bytes, followed by
 *   the query vector: dim elements;
 *   subdir, subdir_bytes long: only files below it are returned. Relative to the directory of the session file.
 */
struct vexfs_search_request {
	/** VEXFS_SEARCH_MAGIC. */
	__u8	magic[8];
	/** VEXFS_UAPI_VERSION. */
	__le32	version;
	/** VEXFS_SEARCH_*. */
	__le32	flags;
	/** Bytes of the whole request, this structure included. */
	__le64	total_bytes;
	/** Only rows whose tag has one of these bits; 0: all rows. */
	__le64	tags_any;
	/** Results wanted: 1 to VEXFS_K_MAX. */
	__le32	k;
	/** Elements of the query; must be the collection's. */
	__le32	dim;
	/** Bytes of subdir, 0 (the whole directory) to VEXFS_PATH_BYTES_MAX. */
	__le32	subdir_bytes;
	/** Zero; reserved for the search effort of an index. */
	__le32	effort;
	/** Type of the query's elements: the collection's, or VEXFS_ELEMENT_F32, which is converted. */
	__u8	element;
	/** Zero. */
	__u8	reserved[15];
};

/**
 * The answer to a search. 64 bytes, followed by
 *   struct vexfs_search_result results[count], nearest first, equal distances by row id;
 *   strings: the paths of the results, and the message.
 */
struct vexfs_search_reply {
	/** VEXFS_SEARCH_REPLY_MAGIC. */
	__u8	magic[8];
	/** VEXFS_UAPI_VERSION. */
	__le32	version;
	/** 0, or a positive Linux errno; then count is 0. */
	__le32	error;
	/** Bytes of the whole reply. */
	__le64	total_bytes;
	/** The epoch whose state is shown: every change acknowledged in it so far is seen. */
	__le64	epoch;
	/** Rows whose distance was computed. */
	__le64	rows_scanned;
	/** Results. */
	__le32	count;
	/** Bytes of the strings, which end the reply. */
	__le32	strings_bytes;
	/** First byte of the message, counted from the beginning of the strings. */
	__le32	message_offset;
	/** Bytes of the message: 0 to VEXFS_MESSAGE_BYTES_MAX, UTF-8. */
	__le32	message_bytes;
	/** Zero. */
	__le64	reserved;
};

/** One row found. 64 bytes. */
struct vexfs_search_result {
	/** The distance: an IEEE 754 binary64. */
	__le64	distance_bits;
	/** The row's id in the collection. */
	__le64	row;
	/** The file's inode number. */
	__le64	ino;
	/** First byte of the passage. */
	__le64	offset;
	/** Bytes of the passage. */
	__le64	length;
	/** The row's tag. */
	__le64	tag;
	/** First byte of the path, counted from the beginning of the strings. */
	__le32	path_offset;
	/** Bytes of the path, relative to the directory of the session file. */
	__le32	path_bytes;
	/** VEXFS_RESULT_*. */
	__le32	flags;
	/** The file's inode generation. */
	__le32	generation;
};

#endif /* _UAPI_VEXFS_H */
