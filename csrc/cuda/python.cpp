// What a step calls for every message, as functions of Python's: torch's dispatcher takes a host whose caches are cold
// longer than CUDA does. Tensors come as addresses, streams and events as handles, which Python's side checks once.
// Python's stable ABI, so that one build serves all versions.
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include <algorithm>
#include <exception>
#include <vector>

#include "cuda/driver.h"
#include "cuda/message.h"
#include "cuda/require.h"
#include "cuda/stream.h"
#include "cuda/wait.h"

namespace hetsched::cuda {
namespace {

// A Python exception that is set already.
struct PythonError {};

// Of a call, in order; Python's numbers as what CUDA takes.
class Arguments {
 public:
  Arguments(PyObject* const* values, Py_ssize_t number, Py_ssize_t expected) : next_(values) {
    require(number == expected, "expected ", expected, " arguments, got ", number);
  }

  int64_t number() { return number_of(*next_++); }
  uint32_t count() { return static_cast<uint32_t>(number()); }
  template <class T>
  T handle() {
    void* value = PyLong_AsVoidPtr(*next_++);
    if (value == nullptr && PyErr_Occurred() != nullptr) throw PythonError{};
    return static_cast<T>(value);
  }
  // A tuple of numbers, or of tuples of as many numbers each, one after the other.
  std::vector<int64_t> numbers(Py_ssize_t of_each) {
    std::vector<int64_t> result;
    PyObject* all = *next_++;
    const Py_ssize_t size = size_of(all);
    result.reserve(size * of_each);
    for (Py_ssize_t i = 0; i < size; ++i) {
      PyObject* one = PyTuple_GetItem(all, i);
      if (of_each > 1) require(size_of(one) == of_each, "expected tuples of ", of_each);
      for (Py_ssize_t j = 0; j < of_each; ++j) result.push_back(number_of(of_each == 1 ? one : PyTuple_GetItem(one, j)));
    }
    return result;
  }

 private:
  static int64_t number_of(PyObject* object) {
    const long long value = PyLong_AsLongLong(object);
    if (value == -1 && PyErr_Occurred() != nullptr) throw PythonError{};
    return value;
  }
  static Py_ssize_t size_of(PyObject* object) {
    require(PyTuple_Check(object) != 0, "expected a tuple");
    return PyTuple_Size(object);
  }

  PyObject* const* next_;
};

// Makes a device the current one for as long as it lives.
class OnDevice {
 public:
  explicit OnDevice(int device) : device_(device) {
    check(cudaGetDevice(&before_), "current device");
    if (before_ != device_) check(cudaSetDevice(device_), "device");
  }
  ~OnDevice() {
    if (before_ != device_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int device_, before_ = 0;
};

// Lets other threads of Python's go on for as long as it lives: where CUDA holds this one, a watchdog has to say so.
class WithoutLock {
 public:
  WithoutLock() : state_(PyEval_SaveThread()) {}
  ~WithoutLock() { PyEval_RestoreThread(state_); }
  WithoutLock(const WithoutLock&) = delete;
  WithoutLock& operator=(const WithoutLock&) = delete;

 private:
  PyThreadState* state_;
};

void put(Arguments arguments) {
  Message message{};
  message.rows = arguments.handle<const char*>();
  message.num_rows = arguments.number();
  message.row_bytes = arguments.number();
  const std::vector<int64_t> runs = arguments.numbers(3);
  for (size_t i = 0; i < runs.size(); i += 3) message.runs.push_back({runs[i], runs[i + 1], runs[i + 2]});
  message.room = arguments.handle<char*>();
  message.room_bytes = arguments.number();
  message.arrived = arguments.handle<uint32_t*>();
  message.number = arguments.count();
  message.returned = arguments.handle<uint32_t*>();
  message.awaited = arguments.count();
  message.ticket = arguments.handle<uint32_t*>();
  message.num_blocks = static_cast<int>(arguments.number());
  message.stream = arguments.handle<cudaStream_t>();
  message.done = arguments.handle<cudaEvent_t>();
  const int device = static_cast<int>(arguments.number());
  const WithoutLock unlocked;
  const OnDevice guard(device);
  cudaStream_t here = current_stream(device);
  if (message.stream == nullptr) message.stream = here;
  put_message(message, here, device);
}

void wait(Arguments arguments) {
  const std::vector<int64_t> addresses = arguments.numbers(1), values = arguments.numbers(1);
  auto seen = arguments.handle<cudaEvent_t>();
  const int device = static_cast<int>(arguments.number());
  require(!addresses.empty() && addresses.size() == values.size(), "there must be counters, and as many values: ",
          addresses.size(), " and ", values.size());
  const WithoutLock unlocked;
  const OnDevice guard(device);
  cudaStream_t stream = current_stream(device);
  for (size_t first = 0; first < addresses.size(); first += kMaxCounts) {
    Counts counts{};
    counts.num_counts = static_cast<int>(std::min<size_t>(kMaxCounts, addresses.size() - first));
    for (int i = 0; i < counts.num_counts; ++i) {
      counts.addresses[i] = reinterpret_cast<const uint32_t*>(addresses[first + i]);
      counts.values[i] = static_cast<uint32_t>(values[first + i]);
    }
    check(wait_for_counts(counts, stream), "wait_for_counts");
  }
  if (seen != nullptr) check(cudaEventRecord(seen, stream), "wait_for_counts: event");
}

void write(Arguments arguments) {
  auto* counter = arguments.handle<uint32_t*>();
  const uint32_t value = arguments.count();
  const int device = static_cast<int>(arguments.number());
  const WithoutLock unlocked;
  const OnDevice guard(device);
  check(stream_write_value(counter, value, current_stream(device)), "stream_write_value");
}

template <void (*function)(Arguments), Py_ssize_t num_arguments>
PyObject* called(PyObject*, PyObject* const* values, Py_ssize_t number) {
  try {
    function(Arguments(values, number, num_arguments));
  } catch (const PythonError&) {
    return nullptr;
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
  return Py_NewRef(Py_None);
}

template <void (*function)(Arguments), Py_ssize_t num_arguments>
PyMethodDef method(const char* name) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(called<function, num_arguments>)),
          METH_FASTCALL, nullptr};
}

}  // namespace
}  // namespace hetsched::cuda

PyMODINIT_FUNC PyInit__cuda() {
  using namespace hetsched::cuda;
  static PyMethodDef methods[] = {
      method<put, 15>("put_message"), method<wait, 4>("wait_for_counts"), method<write, 3>("stream_write_value"), {}};
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_cuda", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
