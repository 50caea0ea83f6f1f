/* Two kernels over bit masks: bit i, from the lowest of each byte on, belongs to weight i.
 *
 * keep: zero the removed ones of n 32-bit weights. One bit a weight in place of a 32-bit mask: a
 * third of the memory traffic, 1/32 of the memory. All bits of a removed weight are cleared, so
 * that NaN becomes +0.0 as well.
 *
 * expand: n weights from a mask and the packed values of its ones; zeros elsewhere. Zeros are
 * written 64 weights at a time, and the few values after them into the cache that they are in.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define PRUNUS_X86 1
#endif

typedef void (*keep_function)(uint32_t *, const uint8_t *, size_t);

static void keep_plain(uint32_t *weights, const uint8_t *bits, size_t n) {
    for (size_t i = 0; i < n; i++)
        weights[i] &= (uint32_t)0 - (uint32_t)((bits[i >> 3] >> (i & 7)) & 1);
}

#ifdef PRUNUS_X86
__attribute__((target("avx512f")))
static void keep_avx512(uint32_t *weights, const uint8_t *bits, size_t n) {
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        __mmask16 kept = (__mmask16)(bits[i >> 3] | (bits[(i >> 3) + 1] << 8));
        _mm512_storeu_si512(weights + i, _mm512_maskz_loadu_epi32(kept, weights + i));
    }
    keep_plain(weights + i, bits + (i >> 3), n - i);
}

__attribute__((target("avx2")))
static void keep_avx2(uint32_t *weights, const uint8_t *bits, size_t n) {
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256i byte = _mm256_set1_epi32(bits[i >> 3]);
        __m256i kept = _mm256_cmpeq_epi32(_mm256_and_si256(byte, lane), lane);
        __m256i *place = (__m256i *)(weights + i);
        _mm256_storeu_si256(place, _mm256_and_si256(kept, _mm256_loadu_si256(place)));
    }
    keep_plain(weights + i, bits + (i >> 3), n - i);
}
#endif

static keep_function chosen = keep_plain;

/* keep(address of weights, bits as bytes-like, n) */
static PyObject *keep(PyObject *self, PyObject *args) {
    unsigned long long address;
    Py_ssize_t n;
    Py_buffer bits;
    if (!PyArg_ParseTuple(args, "Ky*n", &address, &bits, &n))
        return NULL;
    if (n < 0 || bits.len < (n + 7) / 8) {
        PyBuffer_Release(&bits);
        PyErr_SetString(PyExc_ValueError, "fewer bits than weights");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    chosen((uint32_t *)(uintptr_t)address, (const uint8_t *)bits.buf, (size_t)n);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&bits);
    Py_RETURN_NONE;
}

static int lowest(uint64_t word) {
#ifdef __GNUC__
    return __builtin_ctzll(word);
#else
    int i = 0;
    while (!((word >> i) & 1))
        i++;
    return i;
#endif
}

/* The bits of up to 64 weights; byte by byte, so that the order of bytes in memory is no matter. */
static uint64_t word_at(const uint8_t *bits, size_t count) {
    uint64_t word = 0;
    for (size_t i = 0; i < (count + 7) / 8; i++)
        word |= (uint64_t)bits[i] << (8 * i);
    return word;
}

/* Returns 0 if the mask has another number of ones than there are values, or ones past the end.
 * Values may lie at any address: a file decides where. */
#define EXPAND(type)                                                                              \
    static int expand_##type(type *out, const uint8_t *bits, size_t n, const char *value,         \
                             const char *end) {                                                   \
        for (size_t i = 0; i < n; i += 64, bits += 8) {                                           \
            size_t count = n - i < 64 ? n - i : 64;                                               \
            uint64_t word = count == 64 ? word_at(bits, 64) : word_at(bits, count);               \
            if (count < 64 && word >> count)                                                      \
                return 0;                                                                         \
            memset(out + i, 0, count * sizeof(type));                                             \
            for (; word; word &= word - 1, value += sizeof(type)) {                               \
                if (value == end)                                                                 \
                    return 0;                                                                     \
                memcpy(out + i + lowest(word), value, sizeof(type));                              \
            }                                                                                     \
        }                                                                                         \
        return value == end;                                                                      \
    }

EXPAND(uint8_t)
EXPAND(uint16_t)
EXPAND(uint32_t)
EXPAND(uint64_t)

/* expand(addresses of output, bits and values, number of values, n, bytes of a value) */
static PyObject *expand(PyObject *self, PyObject *args) {
    unsigned long long address, bits, values;
    Py_ssize_t count, n, size;
    int fits = 0;
    if (!PyArg_ParseTuple(args, "KKKnnn", &address, &bits, &values, &count, &n, &size))
        return NULL;
    void *out = (void *)(uintptr_t)address;
    const uint8_t *ones = (const uint8_t *)(uintptr_t)bits;
    const char *first = (const char *)(uintptr_t)values;
    if (count >= 0 && n >= 0) {
        const char *end = first + count * size;
        Py_BEGIN_ALLOW_THREADS
        if (size == 1)
            fits = expand_uint8_t(out, ones, (size_t)n, first, end);
        else if (size == 2)
            fits = expand_uint16_t(out, ones, (size_t)n, first, end);
        else if (size == 4)
            fits = expand_uint32_t(out, ones, (size_t)n, first, end);
        else if (size == 8)
            fits = expand_uint64_t(out, ones, (size_t)n, first, end);
        Py_END_ALLOW_THREADS
    }
    return PyBool_FromLong(fits);
}

static PyMethodDef methods[] = {
    {"keep", keep, METH_VARARGS, "keep(address, bits, n): zero the weights whose bit is 0."},
    {"expand", expand, METH_VARARGS,
     "expand(out, bits, values, count, n, size): n weights of `size` bytes from addresses of bits and "
     "of `count` values; False if bits and values disagree."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "kernels", NULL, -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit_kernels(void) {
    const char *instructions = "";
#ifdef PRUNUS_X86
    if (__builtin_cpu_supports("avx512f")) {
        chosen = keep_avx512;
        instructions = "avx512";
    } else if (__builtin_cpu_supports("avx2")) {
        chosen = keep_avx2;
        instructions = "avx2";
    }
#endif
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && PyModule_AddStringConstant(module, "instructions", instructions) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
