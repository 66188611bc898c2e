// libstdc++'s shared_ptr asks glibc 2.32 whether there are threads. With a no of our own the library loads wherever torch does,
// from glibc 2.28 on, and counts references atomically.
extern "C" __attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
