// Ctrl-C, SIGTERM and SIGHUP as a question the run asks, instead of death in the middle of a line.
#pragma once

namespace ingot::tool {

// While one exists, the first SIGINT, SIGTERM or SIGHUP is noted; a second one kills as usual. At
// most one object at a time.
class Interrupt {
 public:
  Interrupt();
  ~Interrupt();
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;

  // The signal that came, or 0.
  [[nodiscard]] static int signal() noexcept;
  // Throws an Error if one came, to leave the run by its ordinary way out.
  static void check();
  // Ends the process by the signal that came, so that a calling shell or script sees it.
  [[noreturn]] static void die();
};

}  // namespace ingot::tool
