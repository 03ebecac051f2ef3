// Dense linear algebra in double: decompositions of what adapters multiply to, over LAPACK and BLAS
// or over another library behind Solver.
//
// Bounded class: results are judged by reconstruction error, not by bytes. Over LAPACK they are the
// same in every run on one machine, for any number of threads, because each call is
// single-threaded.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace ingot::linalg {

// Row-major.
struct Matrix {
  std::size_t rows = 0, cols = 0;
  std::vector<double> data;

  Matrix() = default;
  Matrix(std::size_t rows_, std::size_t cols_) : rows(rows_), cols(cols_), data(rows_ * cols_) {}

  [[nodiscard]] double* row(std::size_t r) { return data.data() + r * cols; }
  [[nodiscard]] const double* row(std::size_t r) const { return data.data() + r * cols; }
  [[nodiscard]] double& at(std::size_t r, std::size_t c) { return data[r * cols + c]; }
  [[nodiscard]] double at(std::size_t r, std::size_t c) const { return data[r * cols + c]; }
};

// Whether a factor of a product is taken as it is or transposed.
enum class As : std::uint8_t { is, turned };

// a times b.
[[nodiscard]] Matrix multiply(const Matrix& a, As a_as, const Matrix& b, As b_as);

// values (rows x columns) += scale * b (rows x rank) * a (rank x columns) in f32, summed in BLAS's
// order. Rows of `a` and of `values` are `width` elements apart.
void add_product(std::size_t rows, std::size_t columns, std::size_t rank, float scale,
                 const float* b, const float* a, float* values, std::size_t width);

// The square root of the sum of squares.
[[nodiscard]] double norm(const Matrix& a);

// Eigenvalues of a symmetric matrix in rising order; row j of `vectors` belongs to values[j].
struct Spectrum {
  std::vector<double> values;
  Matrix vectors;
};
[[nodiscard]] Spectrum eigen(Matrix symmetric);

// left * right with orthonormal rows in `right`, min(rows, cols) of them. Holds for any rank.
struct Split {
  Matrix left, right;
};
[[nodiscard]] Split split(Matrix a);

// Thin singular value decomposition a = turned(u) * diag(values) * v, values falling; vectors are
// the rows of u and v. Values that are not finite in `a` are Error{format}.
struct Singular {
  std::vector<double> values;
  Matrix u, v;
};
[[nodiscard]] Singular svd(const Matrix& a);

// How many singular values stay: `rank` of them at most, and of those the fewest whose squares sum
// to `energy` of all (1: no bound).
struct Cut {
  std::size_t rank = 0;
  double energy = 1;
};
// `total` is the sum of all squares, of values beyond the span too.
[[nodiscard]] std::size_t kept(std::span<const double> values, double total, const Cut& cut);

// A matrix of low rank as B times A. Rows of `a` are orthonormal, its largest entry by magnitude
// (the first of several) is positive in each row, and the singular values are in `b`, which is
// stored transposed (rank x height). Where the matrix has a lower rank than asked, the rest is
// zero.
struct Low {
  Matrix b, a;
  std::vector<double> values;  // singular values found, falling: at least as many as rows of `a`
  double norm = 0;             // Frobenius norm of the matrix
  double error = 0;            // and of what B times A leaves of it
};

// A matrix that is read by runs of rows, as often as asked; each read gives the same values.
struct Rows {
  std::size_t height = 0, width = 0;
  // Fills `values` with rows [first, first + values.size() / width).
  std::function<void(std::size_t first, std::span<float> values)> read;
};

// The power of two by which a matrix of this norm is multiplied so that products and sums of it in
// f32 neither overflow nor lose digits; 0 for all but the very large and the very small.
[[nodiscard]] int shift_of(double norm) noexcept;
// The matrix times 2^shift. Holds a reference to `rows`.
[[nodiscard]] Rows scaled(const Rows& rows, int shift);

// Elements of a large matrix that are read at a time, and the rows that they are.
inline constexpr std::size_t kPiece = std::size_t{1} << 20;
[[nodiscard]] constexpr std::size_t rows_at_once(std::size_t width) {
  return width < kPiece ? kPiece / width : 1;
}

// In double.
[[nodiscard]] double squares(std::span<const float> values);

// `count` matrices of doubles of one shape, row-major, in the memory that a session works in.
class Stack {
 public:
  Stack(std::size_t count_, std::size_t rows_, std::size_t cols_)
      : count(count_), rows(rows_), cols(cols_) {}
  virtual ~Stack() = default;
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;

  const std::size_t count, rows, cols;
};

// Rows [first, first + rows) of every matrix of a stack.
struct Part {
  Part(const Stack& all) : stack(all), rows(all.rows) {}  // NOLINT: all rows are a part
  Part(const Stack& all, std::size_t first_, std::size_t rows_)
      : stack(all), first(first_), rows(rows_) {}

  const Stack& stack;
  std::size_t first = 0, rows = 0;
};

// A matrix of f32 (height x width) in a session's memory, or swept there a piece at a time.
// Products are of f32; what they sum to is kept in double.
class Dense {
 public:
  virtual ~Dense() = default;

  // The matrix in the host's memory, a run of rows at a time: rows [first, first + count).
  using Use = std::function<void(std::size_t first, std::size_t count, const float* values)>;
  virtual void each(const Use& use) = 0;
  // The sum of all squares, in double; not finite where a value is not.
  [[nodiscard]] virtual double squares() = 0;
  // v (n x width) times the transposed matrix: n x height. And u (n x height) times the matrix: n x
  // width.
  [[nodiscard]] virtual std::unique_ptr<Stack> forward(const Stack& v) = 0;
  [[nodiscard]] virtual std::unique_ptr<Stack> backward(const Stack& u) = 0;
  // The Frobenius norm of what turned(b) * a, both rounded to f32, leaves.
  [[nodiscard]] virtual double residual(const Matrix& b, const Matrix& a) = 0;
};

// A library at work on one decomposition, or on several at once. For one thread. Stacks and dense
// matrices must go before their session. Every call may throw Error{memory} where the session's
// memory is too small and Error{device}.
class Session {
 public:
  virtual ~Session() = default;

  // Values are undefined until written.
  [[nodiscard]] virtual std::unique_ptr<Stack> stack(std::size_t count, std::size_t rows,
                                                     std::size_t cols) = 0;
  virtual void write(Stack& to, std::size_t index, Matrix matrix) = 0;
  [[nodiscard]] virtual Matrix read(const Stack& from, std::size_t index) = 0;

  // c = a times b, matrix by matrix.
  virtual void multiply(const Part& a, As a_as, const Part& b, As b_as, Stack& c) = 0;
  // sum += scale * term; of one shape.
  virtual void add(Stack& sum, double scale, const Stack& term) = 0;
  // Row r of matrix i, times by[i * rows + r].
  virtual void scale(const Stack& rows, std::span<const double> by, Stack& result) = 0;
  // Replaces symmetric matrices by their eigenvectors, which are rows, in rising order of the
  // eigenvalues that it returns, matrix after matrix.
  [[nodiscard]] virtual std::vector<double> eigen(Stack& symmetric) = 0;
  // Replaces the rows of a stack of one matrix, no more than it has columns, by orthonormal ones
  // with their span, whatever their rank.
  virtual void orthonormalise(Stack& rows) = 0;
  // svd() of a matrix that is finite.
  [[nodiscard]] virtual Singular svd(const Matrix& a) = 0;
  // Keeps the matrix if `keep`, else reads it again for each sweep. `rows` must outlive the
  // returned object.
  [[nodiscard]] virtual std::unique_ptr<Dense> dense(const Rows& rows, bool keep) = 0;
};

// A library that decomposes. Sessions may be open in several threads.
class Solver {
 public:
  virtual ~Solver() = default;

  // For reports: the library and its version, and where it matters what it did not do and why.
  [[nodiscard]] virtual std::string describe() const = 0;
  // Bytes of memory that a session can have; 0: it works in the host's, as much as it needs.
  [[nodiscard]] virtual std::uint64_t capacity() const = 0;
  // The part of it that eigen() takes beside its stack, and the part that every session takes.
  [[nodiscard]] virtual std::uint64_t eigen_memory(std::size_t order, std::size_t count) = 0;
  [[nodiscard]] virtual std::uint64_t session_memory() const = 0;
  // Waits until `bytes` (capacity() at most) are free.
  [[nodiscard]] virtual std::unique_ptr<Session> open(std::uint64_t bytes) = 0;

  // Matrices decomposed here, and those that were left to LAPACK: their Gram matrices are too
  // ill-conditioned, or they are too large for capacity().
  std::atomic<std::uint64_t> done = 0, ill = 0, large = 0;
};

// LAPACK and BLAS of the host; `why` stands in describe() after a colon.
[[nodiscard]] std::unique_ptr<Solver> lapack(const std::string& why = {});

// The best approximation of turned(b) * a, whose rows are ranks: of `b` R x height, of `a` R x
// width. The product is never formed. Values that are not finite are Error{format}. Over LAPACK.
[[nodiscard]] Low recombine(const Matrix& b, const Matrix& a, const Cut& cut);

// The singular values alone, at a third of the cost.
[[nodiscard]] std::vector<double> spectrum(const Matrix& b, const Matrix& a);

// Products of one shape, to be recombined together.
struct Products {
  std::size_t height = 0, width = 0, ranks = 0;
  std::size_t count = 0;
  std::function<void(std::size_t index, Matrix& b, Matrix& a)> load;  // called once each, in order
};
// recombine() of all of them to `rank` with a few calls into the library: hands over each result
// and returns the indices of those that it leaves to recombine(), in rising order: the error of a
// result is, beside that of the best, within 1e-7 of the norm. Counts in `solver`.
[[nodiscard]] std::vector<std::size_t> recombine(
    Solver& solver, const Products& products, std::size_t rank,
    const std::function<void(std::size_t index, Low&& low)>& take);
// How many such products, `most` at most, fit into half of the solver's memory together; 1 that
// fits into all of it counts. 0: none does, or there are more ranks than rows or columns, where
// Gram matrices are singular.
[[nodiscard]] std::size_t recombine_count(Solver& solver, const Products& products,
                                          std::size_t rank, std::size_t most);

struct Sketch {
  std::uint64_t seed = 0;  // of the first block, drawn by Philox
  // Ends the iteration: another block lowered the error by less than this share of it.
  double gain = 1e-3;
  std::size_t steps = 12;    // most blocks
  std::uint64_t memory = 0;  // host bytes for the matrix; a larger one is read again for each sweep
};

// A nearly best approximation of a matrix of full rank, by block Lanczos bidiagonalisation from a
// random start: `error` is measured against the matrix with A and B rounded to f32. Small matrices,
// and ranks that are a large part of the full rank, use a full decomposition. What does not fit
// into the memory of `solver` is left to LAPACK and counted; null: LAPACK.
[[nodiscard]] Low approximate(const Rows& rows, const Cut& cut, const Sketch& sketch,
                              Solver* solver = nullptr);

// The Frobenius norm of what turned(b) * a, both rounded to f32, leaves of a matrix.
[[nodiscard]] double residual(const Rows& rows, const Matrix& b, const Matrix& a);

// Bytes of the host's that recombine() and approximate() hold at most beside their arguments and
// results.
[[nodiscard]] std::uint64_t recombine_memory(std::uint64_t height, std::uint64_t width,
                                             std::uint64_t ranks);
[[nodiscard]] std::uint64_t approximate_memory(std::uint64_t height, std::uint64_t width,
                                               std::uint64_t rank, const Sketch& sketch);
// About how long they take, counted in the operations of a product of matrices in double that takes
// as long: fitted to measurements, right to a factor of two where no iteration ends early.
[[nodiscard]] double recombine_work(std::uint64_t height, std::uint64_t width, std::uint64_t ranks);
[[nodiscard]] double approximate_work(std::uint64_t height, std::uint64_t width, std::uint64_t rank,
                                      const Sketch& sketch);

}  // namespace ingot::linalg
