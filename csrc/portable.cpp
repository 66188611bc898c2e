// libstdc++'s shared_ptr reads this variable, which glibc exports since 2.32. Defining it here as 0 lets the library load wherever
// torch does, from glibc 2.28 on, and makes shared_ptr count references atomically.
extern "C" __attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
