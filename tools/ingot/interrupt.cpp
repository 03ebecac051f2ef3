#include "interrupt.hpp"

#include <csignal>
#include <cstdlib>
#include <initializer_list>

#include <signal.h>

#include "ingot/error.hpp"

namespace ingot::tool {
namespace {

// A signal handler can reach nothing but a static.
volatile std::sig_atomic_t caught = 0;

extern "C" void note_signal(int number) { caught = number; }

}  // namespace

Interrupt::Interrupt() {
  caught = 0;
  struct sigaction action {};
  action.sa_handler = note_signal;
  action.sa_flags = static_cast<int>(SA_RESETHAND | SA_RESTART);
  for (int number : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction before {};
    ::sigaction(number, nullptr, &before);
    if (before.sa_handler != SIG_IGN) ::sigaction(number, &action, nullptr);  // nohup, cmd &
  }
}

Interrupt::~Interrupt() {
  for (int number : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction now {};
    ::sigaction(number, nullptr, &now);
    if (now.sa_handler == note_signal) std::signal(number, SIG_DFL);
  }
}

int Interrupt::signal() noexcept { return caught; }

void Interrupt::check() {
  if (caught != 0) fail(Code::io, "stopped by a signal");
}

void Interrupt::die() {
  const int number = caught;
  std::signal(number, SIG_DFL);
  std::raise(number);
  std::_Exit(128 + number);
}

}  // namespace ingot::tool
