#include "pool.h"

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

namespace prunus {
inline namespace PRUNUS_ISA {
namespace {

struct Pool {
  std::mutex owner;  // held by the caller whose work is done
  std::mutex door;
  std::condition_variable wake, done;
  int workers = 0, wanted = 0, busy = 0;
  uint64_t turn = 0;
  std::atomic<int64_t> next{0};
  int64_t count = 0;
  void (*work)(void*, int64_t) = nullptr;
  void* context = nullptr;
  pid_t process = getpid();

  std::atomic<bool> failed{false};

  // The only thing that goes wrong is memory; nothing may leave a thread as an exception.
  void drain() {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) try {
        work(context, i);
      } catch (const std::bad_alloc&) {
        failed.store(true, std::memory_order_relaxed);
      }
  }

  void live(int number) {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(door);
    for (;;) {
      wake.wait(lock, [&] { return turn != seen; });
      seen = turn;
      if (number >= wanted) continue;
      lock.unlock();
      drain();
      lock.lock();
      if (--busy == 0) done.notify_one();
    }
  }

  void run(int64_t n, int helpers, void (*f)(void*, int64_t), void* at) {
    {
      std::unique_lock<std::mutex> lock(door);
      work = f, context = at, count = n;
      next.store(0, std::memory_order_relaxed);
      try {
        for (; workers < helpers; ++workers) {
          // a new thread sees the turn that begins here: it starts with none seen
          std::thread([this, number = workers] { live(number); }).detach();
        }
      } catch (const std::system_error&) {  // the system gives no more: fewer do the same
      }
      wanted = busy = helpers < workers ? helpers : workers;
      ++turn;
    }
    wake.notify_all();
    drain();
    std::unique_lock<std::mutex> lock(door);
    done.wait(lock, [&] { return busy == 0; });
    if (failed.exchange(false)) throw std::bad_alloc();
  }
};

// Never destroyed: its threads may outlive the last caller. A forked child, which has none of
// them, gets a new one.
Pool* pool() {
  static std::mutex guard;
  static Pool* made = nullptr;
  static std::atomic<pid_t> process{0};
  if (process.load(std::memory_order_acquire) != getpid()) {
    std::unique_lock<std::mutex> lock(guard, std::try_to_lock);
    if (!lock.owns_lock()) return nullptr;  // being made; the caller works alone
    if (made == nullptr || made->process != getpid()) made = new Pool;
    process.store(getpid(), std::memory_order_release);
  }
  return made;
}

}  // namespace

void parallel(int64_t count, int threads, void (*work)(void*, int64_t), void* context) {
  const int64_t helpers = (threads < count ? threads : count) - 1;
  Pool* shared = helpers > 0 ? pool() : nullptr;
  if (shared != nullptr && shared->owner.try_lock()) {
    std::lock_guard<std::mutex> held(shared->owner, std::adopt_lock);
    return shared->run(count, (int)helpers, work, context);
  }
  for (int64_t i = 0; i < count; ++i) work(context, i);
}

}  // namespace PRUNUS_ISA
}  // namespace prunus
