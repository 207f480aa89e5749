/*
 * A story from the built-in model, token by token, and what else a session can do: go back, split,
 * be saved, be cancelled. Build it with
 *
 *     cc -std=c11 -Wall -Wextra -Werror -I include capi/example.c -L target/release -lpuna_c
 */
#include <puna.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(puna_status status, const char *what) {
    if (status != PUNA_OK) {
        fprintf(stderr, "%s: %s\n", what, puna_last_error());
        exit(1);
    }
}

static void wanted(int holds, const char *what) {
    if (!holds) {
        fprintf(stderr, "%s: not as it should be\n", what);
        exit(1);
    }
}

int main(int argc, char **argv) {
    const char *path = argc > 1 ? argv[1] : "builtin";
    wanted(puna_version() == PUNA_VERSION, "the version of header and library");

    puna_model *model = NULL;
    puna_load_options load;
    puna_load_options_init(&load);
    load.threads = 2;
    load.team_name = "example";
    check(puna_model_load(path, &load, &model), "load");

    /* Memory is known before it is taken. */
    puna_memory memory;
    check(puna_model_memory(model, 128, PUNA_KV_F16, &memory), "memory");
    fprintf(stderr, "weights %zu bytes, cache %zu, workspace %zu at most\n", memory.weights_bytes,
            memory.cache_bytes, memory.workspace_bytes);

    puna_session_options options;
    puna_session_options_init(&options);
    options.ctx = 128;
    options.max_new_tokens = 40;
    options.temperature = 0.7f;
    options.top_k = 40;
    options.seed = 1;
    options.text = 1;
    puna_session *session = NULL;
    check(puna_session_new(model, &options, &session), "session");
    puna_model_free(model); /* the session keeps what it needs */

    const char *text = "Once upon a time";
    uint32_t ids[32];
    size_t n_ids = 0;
    check(puna_model_load(path, NULL, &model), "load again");
    check(puna_tokenize(model, text, strlen(text), 1, ids, 32, &n_ids), "tokenize");
    check(puna_session_prefill(session, ids, n_ids), "prefill");

    const float *logits = NULL;
    size_t n_logits = 0;
    check(puna_session_logits(session, &logits, &n_logits), "logits");
    wanted(n_logits == puna_model_vocab_size(model), "one logit a token");

    /* A copy, and a saved one: both go on with the same bits. */
    puna_session *copy = NULL;
    check(puna_session_fork(session, &copy), "fork");
    size_t size = 0;
    wanted(puna_session_save(session, NULL, 0, &size) == PUNA_TOO_SMALL, "asking for the size");
    void *saved = malloc(size);
    wanted(saved != NULL, "memory");
    check(puna_session_save(session, saved, size, &size), "save");

    uint32_t id = 0, finish = PUNA_GOES_ON;
    while (finish == PUNA_GOES_ON) {
        check(puna_session_step(session, &id, &finish), "step");
    }
    const char *answer = NULL;
    size_t n_bytes = 0;
    check(puna_session_text(session, &answer, &n_bytes), "text");
    printf("%s%.*s\n", text, (int)n_bytes, answer);

    puna_session *later = NULL;
    check(puna_session_new(model, &options, &later), "session");
    wanted(puna_session_restore(later, saved, size / 2) == PUNA_INVALID, "half of a session");
    puna_session *other = NULL;
    check(puna_session_fork(copy, &other), "fork");
    puna_session *both[2] = {copy, other};
    size_t n_stepped = 1;
    while (n_stepped > 0) {
        check(puna_session_step_all(both, 2, &n_stepped), "step_all");
    }
    const uint32_t *first, *second, *third;
    size_t n_first, n_second, n_third;
    check(puna_session_tokens(session, &first, &n_first), "tokens");
    check(puna_session_tokens(copy, &second, &n_second), "tokens");
    check(puna_session_tokens(other, &third, &n_third), "tokens");
    wanted(n_first == n_second && memcmp(first, second, 4 * n_first) == 0, "the fork");
    wanted(n_first == n_third && memcmp(first, third, 4 * n_first) == 0, "the fork of the fork");

    check(puna_session_restore(later, saved, size), "restore");
    finish = PUNA_GOES_ON;
    while (finish == PUNA_GOES_ON) {
        check(puna_session_step(later, &id, &finish), "step");
    }
    check(puna_session_tokens(later, &second, &n_second), "tokens");
    wanted(n_first == n_second && memcmp(first, second, 4 * n_first) == 0, "what was saved");

    char again[64];
    check(puna_detokenize(model, ids, n_ids, again, sizeof again, &n_bytes), "detokenize");
    wanted(n_bytes == strlen(text) && memcmp(again, text, n_bytes) == 0, "the text of the prompt");

    /* Errors are numbers with a text; cancelling lasts until it is taken back. */
    uint32_t beyond = (uint32_t)puna_model_vocab_size(model);
    wanted(puna_session_prefill(copy, &beyond, 1) == PUNA_INVALID, "an id beyond the vocabulary");
    wanted(strstr(puna_last_error(), "vocabulary") != NULL, "the text of the error");
    wanted(puna_session_step(copy, NULL, NULL) == PUNA_INVALID, "no place for the token");
    check(puna_session_cancel(copy), "cancel");
    wanted(puna_session_prefill(copy, ids, 1) == PUNA_CANCELLED, "a cancelled session");
    check(puna_session_resume(copy), "resume");
    size_t n_reused = 0;
    check(puna_session_prompt(copy, ids, n_ids, &n_reused), "prompt");
    wanted(n_reused == n_ids - 1, "a prompt used again");
    check(puna_session_truncate(copy, 2), "truncate");
    check(puna_session_step(copy, &id, NULL), "step");

    puna_session_free(session);
    puna_session_free(copy);
    puna_session_free(other);
    puna_session_free(later);
    puna_session_free(NULL);
    puna_model_free(model);
    free(saved);
    return 0;
}
