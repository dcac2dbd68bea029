/* A tool in the sense of NVTX: writes what a process pushes and pops, a line each, to the file named by NVTX_LISTENER_FILE.
 *
 * NVTX loads the library named by NVTX_INJECTION64_PATH, calls InitializeInjectionNvtx2, and lets it fill in the functions
 * that it wants to hear of. The numbers and the heads of the structures are those of NVTX's public nvtxTypes.h.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { CALLBACKS = 1, CORE2 = 5, PUSH = 4, POP = 5, REGISTER_STRING = 10, CREATE_DOMAIN = 12 };
enum { ASCII = 1, REGISTERED = 3 };

typedef struct {
    size_t size;
    int (*functions)(int module, void ****table, unsigned *count);
} Callbacks;

typedef struct {
    uint16_t version, size;
    uint32_t category;
    int32_t color_type;
    uint32_t color;
    int32_t payload_type, reserved;
    uint64_t payload;
    int32_t message_type;
    const char *message;
} Event;

static FILE *out;

/* A handle is a copy of its name. */
static void *named(const char *name) { return strdup(name); }
static void *named_in(void *domain, const char *name) { return (void)domain, strdup(name); }

static int push(void *domain, const Event *event) {
    const char *name = event->message_type == ASCII || event->message_type == REGISTERED ? event->message : "?";
    fprintf(out, "%ld push %s %s\n", syscall(SYS_gettid), domain ? (char *)domain : "-", name);
    return 0;
}

static int pop(void *domain) {
    fprintf(out, "%ld pop %s\n", syscall(SYS_gettid), domain ? (char *)domain : "-");
    return 0;
}

int InitializeInjectionNvtx2(const void *(*table_of)(uint32_t)) {
    const Callbacks *callbacks = table_of(CALLBACKS);
    const char *file = getenv("NVTX_LISTENER_FILE");
    void ***functions;
    unsigned count;
    if (!callbacks || !file || !callbacks->functions(CORE2, &functions, &count) || count <= CREATE_DOMAIN) return 0;
    out = fopen(file, "a");
    if (!out) return 0;
    setvbuf(out, NULL, _IOLBF, 0);
    *functions[PUSH] = (void *)push;
    *functions[POP] = (void *)pop;
    *functions[REGISTER_STRING] = (void *)named_in;
    *functions[CREATE_DOMAIN] = (void *)named;
    return 1;
}
