/*
 * Puna's C interface: LLaMA models on CPUs, for programs that count microseconds.
 *
 * Link with -lpuna_c (shared), or with libpuna_c.a -lpthread -ldl -lm (static). Before 1.0 the
 * interface may change with any version: hold puna_version() against PUNA_VERSION.
 *
 * Errors. Functions that can fail return a puna_status; what they fill is filled only with PUNA_OK,
 * unless they say otherwise. puna_last_error() tells what went wrong last in the calling thread. No
 * panic and no exception leaves the library: a fault of its own is PUNA_INTERNAL, and the handle that
 * it came from is then good for puna_session_free only.
 *
 * Threads. A model never changes: any number of threads may use it at a time. A session belongs to
 * one thread at a time, but for puna_session_cancel. Sessions of one model may run in several
 * threads; their passes take turns on the model's team of threads.
 *
 * Memory. Handles are freed by their own function, a model after or before its sessions alike.
 * After the first prompt and step of a session, puna_session_step, _step_all, _logits and a prompt
 * no longer than the longest before allocate nothing.
 */
#ifndef PUNA_H
#define PUNA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* 65536 * major + 256 * minor + patch, of this header. */
#define PUNA_VERSION 0x000100u

typedef struct puna_model puna_model;
typedef struct puna_session puna_session;

typedef enum puna_status {
    PUNA_OK = 0,
    PUNA_INVALID = 1,   /* an argument or a setting that cannot be used */
    PUNA_IO = 2,        /* the system refused to read or write */
    PUNA_FORMAT = 3,    /* a file or a text that breaks its format, or is not supported */
    PUNA_NO_ROOM = 4,   /* the context is full */
    PUNA_CANCELLED = 5, /* by puna_session_cancel */
    PUNA_TOO_SMALL = 6, /* a buffer; the size wanted was stored */
    PUNA_DEVICE = 7,    /* threads, cores or instruction set that cannot be had */
    PUNA_INTERNAL = 8   /* a fault of the library */
} puna_status;

typedef enum puna_kv_type {
    PUNA_KV_F16 = 0,
    PUNA_KV_BF16 = 1,
    PUNA_KV_F32 = 2,
    PUNA_KV_Q8_0 = 3
} puna_kv_type;

/* Why a sequence ended. */
typedef enum puna_finish {
    PUNA_GOES_ON = 0,
    PUNA_STOP = 1,  /* an end token or a stop string */
    PUNA_LENGTH = 2 /* as many tokens as asked for, or the context is full */
} puna_finish;

/* Set by puna_load_options_init. */
typedef struct puna_load_options {
    uint32_t threads;      /* of the team, the calling one among them; 1 */
    uint32_t exact;        /* not 0: f32 activations with quantised weights, slower; 0 */
    uint32_t cache_weights; /* not 0: keep rearranged weights in FILE.panels, for a fast start; 0 */
    const char *team_name; /* its threads are called NAME-1, NAME-2, ...; NULL: puna */
    const uint32_t *cores; /* one for each thread but the calling one; NULL: the system's choice */
    uint64_t spin_us;      /* how long a waiting thread spins before it gives its core away; 200 */
} puna_load_options;

/* Set by puna_session_options_init. */
typedef struct puna_session_options {
    size_t ctx;               /* positions, prompt and answer together; 2048 */
    uint32_t kv_type;         /* a puna_kv_type; PUNA_KV_F16 */
    uint32_t top_k;           /* only this many likeliest tokens; 0: all */
    float temperature;        /* 0: always the likeliest token; 0 */
    float top_p;              /* the likeliest tokens with this probability together; 1: all */
    float min_p;              /* tokens at least this likely, as a part of the likeliest; 0: all */
    float repetition_penalty; /* for tokens seen before; 1: none */
    uint64_t seed;            /* of the draws; 0 */
    uint64_t stream;          /* of the seed, another one for each sequence; 0 */
    size_t max_new_tokens;    /* after a prompt; SIZE_MAX */
    const uint32_t *end_ids;  /* tokens that end a sequence; NULL: the model's own */
    size_t n_end_ids;
    const char *const *stop;  /* strings that end a sequence; NULL: none */
    size_t n_stop;
    uint32_t text;            /* not 0: keep the text, for puna_session_text; 0 */
} puna_session_options;

typedef struct puna_memory {
    size_t weights_bytes;   /* of the model, for all sessions */
    size_t cache_bytes;     /* of a session's keys and values */
    size_t workspace_bytes; /* of its buffers, at most */
} puna_memory;

/* The version of the library, as PUNA_VERSION. Any thread. */
uint32_t puna_version(void);

/* What went wrong last in the calling thread, in UTF-8; "" if nothing did. Never NULL. Good until the
 * next call that fails in this thread. */
const char *puna_last_error(void);

/* The values that stand in the comments above. Any thread; the options are the caller's. */
void puna_load_options_init(puna_load_options *options);
void puna_session_options_init(puna_session_options *options);

/* Opens a Hugging Face directory, a .gguf file, or "builtin"; the path is UTF-8. NULL options are
 * those of puna_load_options_init. Any thread. */
puna_status puna_model_load(const char *path, const puna_load_options *options, puna_model **model);

/* Gives a model back; its sessions live on. NULL is nothing. Any thread, once, and no other call
 * with this handle at the same time. */
void puna_model_free(puna_model *model);

/* Tokens of the vocabulary. Any thread. */
size_t puna_model_vocab_size(const puna_model *model);

/* The memory that a model takes and a session with such a context will take. Any thread. */
puna_status puna_model_memory(const puna_model *model, size_t ctx, uint32_t kv_type,
                              puna_memory *memory);

/* Ids of `n_bytes` of UTF-8. `special` not 0: with the tokens that the model wants at the beginning,
 * and with special tokens written in the text recognised. Stores the number of ids in `n_ids`, also
 * with PUNA_TOO_SMALL; `ids` may then be NULL. Any thread. */
puna_status puna_tokenize(const puna_model *model, const char *text, size_t n_bytes,
                          uint32_t special, uint32_t *ids, size_t capacity, size_t *n_ids);

/* Text of ids in UTF-8, without special tokens and without a zero at its end. Stores the number of
 * bytes in `n_bytes`, also with PUNA_TOO_SMALL; `text` may then be NULL. Any thread. */
puna_status puna_detokenize(const puna_model *model, const uint32_t *ids, size_t n_ids, char *text,
                            size_t capacity, size_t *n_bytes);

/* An empty session. NULL options are those of puna_session_options_init. Any thread. */
puna_status puna_session_new(const puna_model *model, const puna_session_options *options,
                             puna_session **session);

/* Frees a session. NULL is nothing. No other call with this handle at the same time. */
void puna_session_free(puna_session *session);

/* Appends tokens and runs them. What fails leaves the session as it was. The session's thread. */
puna_status puna_session_prefill(puna_session *session, const uint32_t *ids, size_t n_ids);

/* Makes the session's tokens those of a prompt, running only what its cache lacks; stores how many it
 * had in `n_reused`, which may be NULL. The session's thread. */
puna_status puna_session_prompt(puna_session *session, const uint32_t *ids, size_t n_ids,
                                size_t *n_reused);

/* Chooses the next token, and tells whether the sequence ends with it (a puna_finish; may be NULL).
 * The session's thread. */
puna_status puna_session_step(puna_session *session, uint32_t *id, uint32_t *finish);

/* Steps several sessions of one model in one pass: those that go on. Stores how many in `n_stepped`,
 * which may be NULL; the last of puna_session_tokens is what each got. No session may come twice. The
 * array is read only, but no other thread may use it meanwhile. The thread of all of them. */
puna_status puna_session_step_all(puna_session **sessions, size_t n_sessions, size_t *n_stepped);

/* Logits after the last token, as many as the vocabulary has tokens. Good until the next call with
 * this session. The session's thread. */
puna_status puna_session_logits(puna_session *session, const float **logits, size_t *n_logits);

/* Prompt and answer so far. Good until the next call with this session. The session's thread. */
puna_status puna_session_tokens(const puna_session *session, const uint32_t **ids, size_t *n_ids);

/* The answer so far, in UTF-8, with no zero at its end. Good until the next call with this session.
 * The session's thread. */
puna_status puna_session_text(const puna_session *session, const char **text, size_t *n_bytes);

/* Keeps the first tokens. The session's thread. */
puna_status puna_session_truncate(puna_session *session, size_t n_ids);

/* Cancels: a call that is running returns PUNA_CANCELLED within a block of the model, and so do later
 * ones. ANY thread, also while another call with this session runs; not while it is freed. */
puna_status puna_session_cancel(const puna_session *session);

/* Takes a cancellation back. ANY thread, as puna_session_cancel. */
puna_status puna_session_resume(const puna_session *session);

/* A copy that goes on by itself, with the same bits. The session's thread; the copy is new. */
puna_status puna_session_fork(const puna_session *session, puna_session **copy);

/* Writes a session down. Stores the number of bytes in `n_bytes`, also with PUNA_TOO_SMALL; `bytes`
 * may then be NULL. The session's thread. */
puna_status puna_session_save(const puna_session *session, void *bytes, size_t capacity,
                              size_t *n_bytes);

/* Becomes the session that was saved; where that fails, an empty one. The session's thread. */
puna_status puna_session_restore(puna_session *session, const void *bytes, size_t n_bytes);

#ifdef __cplusplus
}
#endif

#endif
