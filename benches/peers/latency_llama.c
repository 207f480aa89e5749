/* The control loop of examples/latency.rs on llama.cpp's own interface: prompts that share their
 * beginning, then greedy tokens, each timed. Built and run by latency.py.
 *
 *   latency_llama MODEL REQUESTS TOKENS PROMPT_TOKENS PERIOD_MS THREADS WARM_UP
 *
 * Prints three lines, "token", "first token" and "request", each followed by all times in ms. */
#define _POSIX_C_SOURCE 200809L
#include <llama.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static void sleep_until(double ms) {
    double left = ms - now_ms();
    if (left > 0) {
        struct timespec t = {(time_t)(left / 1e3), 0};
        t.tv_nsec = (long)((left - (double)t.tv_sec * 1e3) * 1e6);
        nanosleep(&t, NULL);
    }
}

static llama_token likeliest(struct llama_context *ctx, int vocab) {
    const float *logits = llama_get_logits_ith(ctx, -1);
    int best = 0;
    for (int i = 1; i < vocab; i++) {
        if (logits[i] > logits[best]) best = i;
    }
    return best;
}

static void print(const char *name, const double *ms, int n) {
    printf("%s", name);
    for (int i = 0; i < n; i++) printf(" %.4f", ms[i]);
    printf("\n");
}

static void silent(enum ggml_log_level level, const char *text, void *data) {
    (void)data;
    if (level >= GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

int main(int argc, char **argv) {
    if (argc != 8) {
        fprintf(stderr, "wanted MODEL REQUESTS TOKENS PROMPT_TOKENS PERIOD_MS THREADS WARM_UP\n");
        return 2;
    }
    int requests = atoi(argv[2]), tokens = atoi(argv[3]), prompt = atoi(argv[4]);
    double period = atof(argv[5]);
    int threads = atoi(argv[6]), warm_up = atoi(argv[7]);
    llama_log_set(silent, NULL);
    llama_backend_init();
    struct llama_model *model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) return 1;
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = (uint32_t)(prompt + tokens);
    params.n_threads = params.n_threads_batch = threads;
    struct llama_context *ctx = llama_init_from_model(model, params);
    if (!ctx) return 1;
    int vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    double *token_ms = malloc(sizeof(double) * (size_t)(requests * tokens + 1));
    double *first_ms = malloc(sizeof(double) * (size_t)(requests + 1));
    double *request_ms = malloc(sizeof(double) * (size_t)(requests + 1));
    llama_token *ids = malloc(sizeof(llama_token) * (size_t)prompt);
    int n_token = 0, n_request = 0, kept = 0;
    unsigned state = 1;
    for (int i = 0; i < prompt; i++) {
        state = state * 1664525u + 1013904223u;
        ids[i] = (llama_token)(state % (unsigned)vocab);
    }
    double next = now_ms();
    for (int r = 0; r < warm_up + requests; r++) {
        int shared = prompt * 3 / 4;
        for (int i = shared; i < prompt; i++) {
            state = state * 1664525u + 1013904223u;
            ids[i] = (llama_token)(state % (unsigned)vocab);
        }
        double start = now_ms(), last = start;
        if (kept > shared) kept = shared;
        llama_memory_seq_rm(llama_get_memory(ctx), 0, kept, -1);
        if (llama_decode(ctx, llama_batch_get_one(ids + kept, prompt - kept))) return 1;
        kept = prompt;
        for (int i = 0; i < tokens; i++) {
            llama_token id = likeliest(ctx, vocab);
            double at = now_ms();
            if (r >= warm_up) {
                if (i == 0) first_ms[n_request] = at - start;
                else token_ms[n_token++] = at - last;
            }
            last = at;
            if (i + 1 < tokens && llama_decode(ctx, llama_batch_get_one(&id, 1))) return 1;
        }
        if (r >= warm_up) request_ms[n_request++] = now_ms() - start;
        next += period;
        sleep_until(next);
    }
    print("token", token_ms, n_token);
    print("first_token", first_ms, n_request);
    print("request", request_ms, n_request);
    return 0;
}
