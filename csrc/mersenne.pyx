# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: freethreading_compatible=True
"""Random numbers: the Mersenne Twister of CPython's `random.Random`, number for number, in compiled code.

Source: Matsumoto and Nishimura, 1998 (MT19937); the derived distributions are those of CPython's random.py.

Threads: each method is one critical section, so threads may share a generator, and each number is given once. Nothing
here releases the GIL, where there is one.
"""
cimport cython
from libc.math cimport cos, log, sin, sqrt
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memcpy

import random

import numpy


cdef enum:
    SIZE = 624  # words of state
    SHIFT = 397

cdef double TWO_PI = 6.283185307179586


cdef class Generator:
    """The twin of `microgpt.random.mersenne.Generator`, which is a `random.Random`: same seed, same numbers.

    `seed` is anything `random.Random` takes, or a `random.Random` or a `Generator`, whose state is then copied.
    """

    cdef uint32_t words[SIZE]
    cdef int position
    cdef double next_gauss
    cdef bint has_next_gauss

    def __init__(self, seed=None):
        has_state = isinstance(seed, (Generator, random.Random))
        self.setstate((seed if has_state else random.Random(seed)).getstate())

    def getstate(self):
        """The state as `random.Random.getstate` gives it: `random.Random.setstate` takes it."""
        cdef uint32_t words[SIZE]
        cdef int position
        cdef bint has_next_gauss
        cdef double next_gauss
        with cython.critical_section(self):
            memcpy(words, self.words, sizeof(words))
            position, has_next_gauss, next_gauss = self.position, self.has_next_gauss, self.next_gauss
        numbers = (*[words[i] for i in range(SIZE)], position)
        return (random.Random.VERSION, numbers, next_gauss if has_next_gauss else None)

    def setstate(self, state):
        """Continue from a state that this `getstate` or that of `random.Random` returned."""
        version, words, next_gauss = state
        cdef uint32_t new_words[SIZE]
        cdef double new_gauss = 0.0 if next_gauss is None else next_gauss
        words = tuple(words)  # which nobody can change
        if version != random.Random.VERSION or len(words) != SIZE + 1 or not 0 <= words[SIZE] <= SIZE:
            raise ValueError("state is not one of random.Random's")
        cdef int new_position = words[SIZE]
        for i in range(SIZE):
            new_words[i] = words[i]
        with cython.critical_section(self):
            memcpy(self.words, new_words, sizeof(new_words))
            self.position = new_position
            self.has_next_gauss = next_gauss is not None
            self.next_gauss = new_gauss

    def __reduce__(self):
        return (_restore, (self.getstate(),))

    cdef void refill(self) noexcept nogil:
        cdef int i
        cdef uint32_t y
        for i in range(SIZE):
            y = (self.words[i] & 0x80000000U) | (self.words[(i + 1) % SIZE] & 0x7fffffffU)
            self.words[i] = self.words[(i + SHIFT) % SIZE] ^ (y >> 1) ^ (0x9908b0dfU if y & 1 else 0)
        self.position = 0

    cdef inline uint32_t next_word(self) noexcept nogil:
        cdef uint32_t y
        if self.position == SIZE:
            self.refill()
        y = self.words[self.position]
        self.position += 1
        y ^= y >> 11
        y ^= (y << 7) & 0x9d2c5680U
        y ^= (y << 15) & 0xefc60000U
        return y ^ (y >> 18)

    cdef inline double uniform(self) noexcept nogil:
        cdef uint32_t a = self.next_word() >> 5, b = self.next_word() >> 6
        return (a * 67108864.0 + b) * (1.0 / 9007199254740992.0)

    cdef inline double normal(self, double mu, double sigma) noexcept nogil:
        """Two normal numbers come from two uniform ones (Box and Muller, 1958); the second waits for the next call."""
        cdef double angle, radius, z
        if self.has_next_gauss:
            z = self.next_gauss
            self.has_next_gauss = False
        else:
            angle = self.uniform() * TWO_PI
            radius = sqrt(-2.0 * log(1.0 - self.uniform()))
            z = cos(angle) * radius
            self.next_gauss = sin(angle) * radius
            self.has_next_gauss = True
        return mu + z * sigma

    cdef inline int64_t below(self, int64_t n) noexcept nogil:
        """An integer in [0, n), for n up to 2**62. Of two words, the first is the lower one."""
        cdef int bits = 0
        cdef int64_t r
        while n >> bits:
            bits += 1
        while True:
            if bits <= 32:
                r = self.next_word() >> (32 - bits)
            else:
                r = self.next_word()
                r |= <int64_t>(self.next_word() >> (64 - bits)) << 32
            if r < n:
                return r

    @cython.critical_section
    def random(self):
        """A number in [0, 1)."""
        return self.uniform()

    @cython.critical_section
    def gauss(self, double mu=0.0, double sigma=1.0):
        """A normally distributed number."""
        return self.normal(mu, sigma)

    @cython.critical_section
    def randrange(self, int64_t n):
        """An integer in [0, n), 1 <= n <= 2**62."""
        if not 1 <= n <= <int64_t>1 << 62:
            raise ValueError(f"n must be between 1 and 2**62, got {n}")
        return self.below(n)

    def shuffle(self, list x):
        """Shuffle a list in place (Fisher and Yates)."""
        cdef Py_ssize_t i, j
        with cython.critical_section(self, x):
            for i in range(len(x) - 1, 0, -1):
                j = self.below(i + 1)
                x[i], x[j] = x[j], x[i]

    def permutation(self, Py_ssize_t n):
        """The integers in [0, n) in the order of `shuffle`: int64."""
        numbers = numpy.arange(n, dtype=numpy.int64)
        cdef int64_t[::1] x = numbers
        cdef Py_ssize_t i, j
        with cython.critical_section(self):
            for i in range(n - 1, 0, -1):
                j = self.below(i + 1)
                x[i], x[j] = x[j], x[i]
        return numbers

    def fill_gauss(self, array, double sigma):
        """Fill a one-dimensional float array with `gauss(0, sigma)`, in order."""
        cdef double[::1] doubles
        cdef float[::1] floats
        cdef Py_ssize_t i
        if array.dtype == "float64":
            doubles = array
            with cython.critical_section(self):
                for i in range(doubles.shape[0]):
                    doubles[i] = self.normal(0.0, sigma)
        else:
            floats = array
            with cython.critical_section(self):
                for i in range(floats.shape[0]):
                    floats[i] = <float>self.normal(0.0, sigma)


def _restore(state):
    generator = Generator(0)
    generator.setstate(state)
    return generator
