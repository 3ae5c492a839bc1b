/* Counts the bytes of every block that this process has from malloc and its relatives: now, and at most.
 *
 * Preloaded before glibc (LD_PRELOAD), whose own functions do the work under their internal names.  A block counts with
 * the size that can be used of it, which glibc rounds up: by less than 16 bytes, or to whole pages for large blocks.
 */
#include <errno.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stddef.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static atomic_long live_bytes, peak_bytes;

static void *counted(void *block) {
    if (block == NULL)
        return NULL;
    long now = atomic_fetch_add(&live_bytes, (long)malloc_usable_size(block)) + (long)malloc_usable_size(block);
    long peak = atomic_load(&peak_bytes);
    while (now > peak && !atomic_compare_exchange_weak(&peak_bytes, &peak, now)) {
    }
    return block;
}

static void uncounted(void *block) {
    if (block != NULL)
        atomic_fetch_sub(&live_bytes, (long)malloc_usable_size(block));
}

void *malloc(size_t size) { return counted(__libc_malloc(size)); }

void *calloc(size_t count, size_t size) { return counted(__libc_calloc(count, size)); }

void free(void *block) {
    uncounted(block);
    __libc_free(block);
}

void *realloc(void *block, size_t size) {
    long before = block == NULL ? 0 : (long)malloc_usable_size(block);
    void *moved = __libc_realloc(block, size);
    if (moved != NULL || size == 0)
        atomic_fetch_sub(&live_bytes, before);
    return counted(moved);
}

void *memalign(size_t alignment, size_t size) { return counted(__libc_memalign(alignment, size)); }

void *aligned_alloc(size_t alignment, size_t size) { return counted(__libc_memalign(alignment, size)); }

int posix_memalign(void **block, size_t alignment, size_t size) {
    if (alignment < sizeof(void *) || (alignment & (alignment - 1)) != 0)
        return EINVAL;
    void *found = counted(__libc_memalign(alignment, size));
    if (found == NULL)
        return ENOMEM;
    *block = found;
    return 0;
}

/* For whoever asks. */
long malloc_count_live(void) { return atomic_load(&live_bytes); }

long malloc_count_peak(void) { return atomic_load(&peak_bytes); }

void malloc_count_reset_peak(void) { atomic_store(&peak_bytes, atomic_load(&live_bytes)); }
