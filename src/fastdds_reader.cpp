// The messages of an rmw_fastrtps_cpp subscription: waited for, and copied once, from where Fast DDS keeps a message to memory of
// the caller's. flashrt_ros/nodes/fastdds_take.py calls this through ctypes, and rcl where it was not built.
//
// rcl_take_serialized_message copies twice, into a buffer made for the message and from there; and whoever waits in an rcl wait
// set asks for the message only once it has Python's lock again. Here a thread without that lock waits, and Fast DDS's thread
// copies for it what it has just brought and has at hand, while the other still wakes.
//
// Made of public parts only: rmw_fastrtps_cpp::get_datareader, DataReader::take, and the table of functions by which
// a type support reads a message of its type, in which the one that would deserialize copies the bytes as they are.
#include <fastcdr/Cdr.h>
#include <rcl/subscription.h>
#include <rmw/rmw.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <fastdds/dds/core/StackAllocatedSequence.hpp>
#include <fastdds/dds/subscriber/DataReader.hpp>
#include <fastdds/dds/subscriber/SampleInfo.hpp>
#include <mutex>
#include <rmw_fastrtps_cpp/get_subscriber.hpp>
#include <rmw_fastrtps_shared_cpp/TypeSupport.hpp>
#include <rosidl_typesupport_fastrtps_cpp/message_type_support.h>
#include <utility>
#include <vector>

#if __has_include(<fastrtps/config.h>)  // Fast DDS 2, of ROS 2 Jazzy
constexpr auto ROS_MESSAGE = rmw_fastrtps_shared_cpp::FASTRTPS_SERIALIZED_DATA_TYPE_ROS_MESSAGE;
const auto FOUND = eprosima::fastrtps::types::ReturnCode_t::RETCODE_OK;
#else
constexpr auto ROS_MESSAGE = rmw_fastrtps_shared_cpp::FASTDDS_SERIALIZED_DATA_TYPE_ROS_MESSAGE;
const auto FOUND = eprosima::fastdds::dds::RETCODE_OK;
#endif

namespace {

using eprosima::fastcdr::Cdr;
using eprosima::fastdds::dds::SampleInfo;

enum Outcome { NOTHING = 0, TAKEN = 1, REFUSED = 2, UNREADABLE = 3 };

// Of one message, and what it may repeat of the one before. Given: memory, capacity: where it goes. head, mask, head_size: the
// bytes in front of its data, from the encapsulation on, if it repeats them, and which bits of them count, not those of its stamp.
// least: bytes that it then has at least.
// Found: size: bytes that it has, with its encapsulation. repeats: whether it does. stamp_ns: if so, of its header. received_ns:
// when the middleware had it, taken_ns: when it was in memory, both by the system clock.
struct Message {
  char* memory;
  size_t capacity;
  const char *head, *mask;
  size_t head_size, least;
  size_t size;
  int64_t repeats, stamp_ns, received_ns, taken_ns;
};

// The largest memory that Fast DDS's thread fills: with what does not fit it holds up what else it has to bring, 0.1 ms for a
// megabyte where memory is slow.
constexpr size_t MOST_FILLED = size_t(8) << 20;

// How long who wakes looks again for what is being copied for it, before it sleeps once more.
constexpr std::chrono::microseconds SPIN{300};

// A std_msgs/Header begins with seconds, int32, and nanoseconds, uint32.
constexpr size_t STAMP_AT = 4, STAMP_END = 12;

// Memory for so many bytes, instead of a message's own that is too small; null where there is none.
using Grow = void* (*)(size_t);

// What a message is copied to while Fast DDS holds its locks, under which nobody may be asked for memory: who gives it may hold a
// lock of its own, Python's, while it waits for one of those.
struct Request {
  Message& message;
  bool seen = false, gone = false;  // copied; taken, be it in vain
  std::vector<char> overflow = {};
};

size_t bytes_left(Cdr& cdr) {
  size_t count = 0;
  for (size_t step = size_t(1) << 31; step; step /= 2) {
    while (cdr.jump(step)) count += step;
  }
  return count;
}

bool copy_bytes(Cdr& cdr, void* request_of_it) {
  auto& request = *static_cast<Request*>(request_of_it);
  const char* begin = cdr.get_buffer_pointer();
  const size_t read = cdr.get_current_position() - begin, size = read + bytes_left(cdr);
  request.message.size = size;
  if (size <= request.message.capacity) {
    std::memcpy(request.message.memory, begin, size);
  } else {
    request.overflow.assign(begin, begin + size);
  }
  request.seen = true;
  return true;
}

int64_t stamp_of(const char* message) {
  uint32_t words[2];
  std::memcpy(words, message + STAMP_AT, sizeof words);
  const bool little_endian = message[1] & 1;
  if (!little_endian) words[0] = __builtin_bswap32(words[0]), words[1] = __builtin_bswap32(words[1]);
  return int64_t(int32_t(words[0])) * 1000000000 + words[1];
}

void compare(Message& message) {
  int different = message.head_size < STAMP_END || message.size < message.least;
  for (size_t i = 0; !different && i < message.head_size; i++) {
    different = (message.memory[i] ^ message.head[i]) & message.mask[i];
  }
  message.repeats = !different;
  if (message.repeats) message.stamp_ns = stamp_of(message.memory);
}

Outcome settle(const Request& request, Grow grow) {
  Message& message = request.message;
  message.repeats = 0;
  if (!request.seen) return UNREADABLE;
  if (request.overflow.empty()) {
    compare(message);
  } else {
    void* memory = grow(request.overflow.size());
    if (!memory) return REFUSED;
    std::memcpy(memory, request.overflow.data(), request.overflow.size());
  }
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  message.taken_ns = std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
  return TAKEN;
}

class Reader {
 public:
  Reader(rmw_subscription_t* subscription, eprosima::fastdds::dds::DataReader* reader)
      : subscription_(subscription), reader_(reader) {
    callbacks_.cdr_deserialize = copy_bytes;
  }

  bool listen() { return rmw_subscription_set_on_new_message_callback(subscription_, note, this) == RMW_RET_OK; }

  ~Reader() { (void)!rmw_subscription_set_on_new_message_callback(subscription_, nullptr, nullptr); }

  Outcome take(int64_t timeout_ns, Message& message, Grow grow) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::nanoseconds(timeout_ns);
    Request request{message};
    bool news = true;
    while (!request.gone && news) {
      take_next(request);
      if (!request.gone) news = wait_until(deadline, request);
    }
    return request.gone ? settle(request, grow) : NOTHING;
  }

  void rest(int64_t timeout_ns) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait_for(lock, std::chrono::nanoseconds(timeout_ns), [this] { return news_ || woken_; });
  }

  void wake() {
    const std::lock_guard<std::mutex> lock(mutex_);
    woken_ = true;
    changed_.notify_all();
  }

 private:
  // Called by the thread that has brought a message, one of Fast DDS's or a publisher's of this process.
  static void note(const void* reader, size_t) {
    auto& self = *static_cast<Reader*>(const_cast<void*>(reader));
    Request* const request = self.accept();
    if (!request) return;
    self.take_next(*request);
    const std::lock_guard<std::mutex> lock(self.mutex_);
    self.filling_ = false;
    self.changed_.notify_all();
  }

  // What is on offer, which is to be filled then. Who waits is woken in any case.
  Request* accept() {
    const std::lock_guard<std::mutex> lock(mutex_);
    Request* const request = std::exchange(offered_, nullptr);
    if (request) filling_ = true;
    else news_ = true;
    changed_.notify_all();
    return request;
  }

  // Offers a request to who brings the next message. Returns whether something new may be there besides what fills it.
  bool wait_until(std::chrono::steady_clock::time_point deadline, Request& request) {
    std::unique_lock<std::mutex> lock(mutex_);
    const bool offers = request.message.memory && request.message.capacity <= MOST_FILLED;
    if (offers && !news_) offered_ = &request;
    changed_.wait_until(lock, deadline, [&] { return news_ || woken_ || (offers && !offered_); });
    offered_ = nullptr;
    if (filling_) wait_for_filling(lock);
    const bool news = news_ && !woken_;
    news_ = woken_ = false;
    return news;
  }

  void wait_for_filling(std::unique_lock<std::mutex>& lock) {
    lock.unlock();
    const auto end = std::chrono::steady_clock::now() + SPIN;
    while (filling_ && std::chrono::steady_clock::now() < end) {
    }
    lock.lock();
    changed_.wait(lock, [this] { return !filling_; });
  }

  void take_next(Request& request) {
    rmw_fastrtps_shared_cpp::SerializedData data{ROS_MESSAGE, &request, &callbacks_};
    SampleInfo info;
    while (reader_->get_first_untaken_info(&info) == FOUND) {
      const_cast<void**>(values_.buffer())[0] = &data;
      reader_->take(values_, infos_, 1);  // not take_next_sample, for which what rmw has been told of is read already
      const bool taken = infos_.length() > 0;
      values_.length(0);
      infos_.length(0);
      request.message.received_ns = info.reception_timestamp.to_ns();
      request.gone = request.seen || info.valid_data;
      if (request.gone || !taken) break;  // what tells of writers that have gone may stay
    }
  }

  rmw_subscription_t* subscription_;
  eprosima::fastdds::dds::DataReader* reader_;
  message_type_support_callbacks_t callbacks_{};
  eprosima::fastdds::dds::StackAllocatedSequence<void*, 1> values_;
  eprosima::fastdds::dds::SampleInfoSeq infos_{1};
  std::mutex mutex_;
  std::condition_variable changed_;
  bool news_ = false, woken_ = false;
  Request* offered_ = nullptr;
  std::atomic<bool> filling_{false};  // looked at without the lock, too
};

}  // namespace

extern "C" {

// What the functions below and their structures look like.
int flashrt_fastdds_version() { return 3; }

// Null for a subscription of another middleware. It has to live until the reader is closed, and nobody else may take from it.
void* flashrt_fastdds_open(const rcl_subscription_t* subscription) {
  rmw_subscription_t* handle = rcl_subscription_get_rmw_handle(subscription);
  auto* data_reader = handle ? rmw_fastrtps_cpp::get_datareader(handle) : nullptr;
  if (!data_reader) return nullptr;
  auto* reader = new Reader(handle, data_reader);
  if (reader->listen()) return reader;
  delete reader;
  return nullptr;
}

// Waits for a message and takes it, one thread at a time. Returns an Outcome: NOTHING after the timeout or `wake`, REFUSED where
// `grow` gave no memory, UNREADABLE where a message's first bytes name no encoding, or it found no memory for it; the message is
// gone then.
int flashrt_fastdds_take(void* reader, int64_t timeout_ns, Message* message, Grow grow) {
  return static_cast<Reader*>(reader)->take(timeout_ns, *message, grow);
}

// Waits until there may be a message, without taking it.
void flashrt_fastdds_rest(void* reader, int64_t timeout_ns) { static_cast<Reader*>(reader)->rest(timeout_ns); }

// Ends the wait of `take`, or the next one. Any thread.
void flashrt_fastdds_wake(void* reader) { static_cast<Reader*>(reader)->wake(); }

void flashrt_fastdds_close(void* reader) { delete static_cast<Reader*>(reader); }
}
