// No exception crosses into Rust: a function returns 0, or 1 with the message kept for byol_last_error().
#pragma once
#include <c10/util/Exception.h>
#include <string>

inline thread_local std::string last_error;

template <typename F>
int guarded(F f) {
  try {
    f();
    return 0;
  } catch (const c10::Error& e) {
    last_error = e.what_without_backtrace();
  } catch (const std::exception& e) {
    last_error = e.what();
  } catch (...) {
    last_error = "unknown C++ exception";
  }
  return 1;
}
