/* Safe ways to take the GIL back: once the interpreter has ended, a thread must not.
 *
 * Python does not wait for daemon threads: at exit it frees their states and, in the end, the GIL's own. A thread that
 * then returns from a computation and asks for the GIL crashes. Here it sleeps until the process ends, as CPython 3.14
 * makes threads do that ask while the interpreter is ending.
 *
 * Include this where code releases the GIL. Whatever takes it back there, also the code that Cython generates for the
 * end of `with nogil` and for errors, then does so through `gil_restore` and `gil_ensure`. The module that includes it
 * has `gil_before_exit` called when Python exits, and `gil_after_fork` in forked processes.
 */
#pragma once

#include <Python.h>
#include <stdatomic.h>
#if defined(_WIN32)
#include <windows.h>
#define GIL_YIELD() SwitchToThread()
#define GIL_SLEEP() Sleep(1000)
#else
#include <sched.h>
#include <unistd.h>
#define GIL_YIELD() sched_yield()
#define GIL_SLEEP() sleep(1)
#endif

static _Atomic int gil_exiting;
static _Atomic(unsigned long) gil_exiting_thread;
static _Atomic int gil_asking; /* threads that `gil_before_exit` waits for */

/* Whether Python is exiting, or has exited. From then on it may refuse to start threads, or never run them. */
static inline int gil_is_exiting(void) { return atomic_load(&gil_exiting); }

/* Get ready to ask for the GIL. Returns whether `gil_before_exit` waits until the caller has it.
 *
 * Later, a thread gets the GIL as long as the interpreter is there: another function that runs at exit may be waiting
 * for that thread. */
static int gil_ask(void) {
    atomic_fetch_add(&gil_asking, 1);
    if (!atomic_load(&gil_exiting)) return 1;
    atomic_fetch_sub(&gil_asking, 1);
    while (!Py_IsInitialized() && PyThread_get_thread_ident() != atomic_load(&gil_exiting_thread)) GIL_SLEEP();
    return 0;
}

static void gil_restore(PyThreadState *state) {
    const int counted = gil_ask();
    PyEval_RestoreThread(state);
    if (counted) atomic_fetch_sub(&gil_asking, 1);
}

static PyGILState_STATE gil_ensure(void) {
    const int counted = gil_ask();
    const PyGILState_STATE state = PyGILState_Ensure();
    if (counted) atomic_fetch_sub(&gil_asking, 1);
    return state;
}

/* Wait until the threads that have begun to ask for the GIL have it. Those that ask later check the interpreter. */
static void gil_before_exit(void) {
    atomic_store(&gil_exiting_thread, PyThread_get_thread_ident());
    atomic_store(&gil_exiting, 1);
    PyThreadState *state = PyEval_SaveThread();
    while (atomic_load(&gil_asking) > 0) GIL_YIELD();
    PyEval_RestoreThread(state);
}

/* In the child only the thread that forked is left, and it has the GIL. */
static void gil_after_fork(void) {
    atomic_store(&gil_exiting, 0);
    atomic_store(&gil_asking, 0);
}

#define PyEval_RestoreThread gil_restore
#define PyGILState_Ensure gil_ensure
