// Sparse layers as operators of OpenVINO. The arithmetic is in the kernels' own libraries (csrc), whose functions Python
// hands over; here the sizes are checked, once the positions too, and memory to work in is kept for each thread.
#include <atomic>
#include <cstdlib>
#include <memory>
#include <openvino/core/op_extension.hpp>
#include <openvino/op/constant.hpp>
#include <openvino/op/op.hpp>

#include "../kernels/csrc/conv.hpp"

namespace {

constexpr int64_t SETS = 4, MOST_INPUTS = 65536, MOST_THREADS = 64, MOST = int64_t(1) << 31;

struct Kernels {
    void (*linear)(const Rows *, const Finish *, const float *, float *, int64_t, void *, int32_t);
    int64_t (*linear_work)(const Rows *, int64_t, int32_t);
    void (*conv)(const Rows *, const Geometry *, const Finish *, const float *, float *, int64_t, void *, int32_t);
    int64_t (*conv_work)(const Rows *, const Geometry *, int32_t);
};

Kernels kernels[SETS] = {};

struct Free {
    void operator()(void *memory) const { std::free(memory); }
};

// 64-byte aligned; kept, and enlarged where a layer needs more.
void *room(int64_t bytes) {
    thread_local std::unique_ptr<void, Free> memory;
    thread_local int64_t size = 0;
    if (bytes > size) {
        memory.reset(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
        size = memory ? bytes : 0;
        OPENVINO_ASSERT(memory, "no memory for a sparse layer: ", bytes, " bytes");
    }
    return memory.get();
}

// What replace.py writes. Of the one constant: start, value, bias, index, each filled up to 64 bytes.
struct About {
    int64_t outputs = 0, inputs = 0, height = 0, parts = 0, columns = 0, biased = 0, activation = 0, set = 0, threads = 0;
    std::vector<int64_t> window;  // convolution: kernel, stride (2 each), padding (top, left, bottom, right)

    void visit(ov::AttributeVisitor &visitor) {
        visitor.on_attribute("outputs", outputs);
        visitor.on_attribute("inputs", inputs);
        visitor.on_attribute("height", height);
        visitor.on_attribute("parts", parts);
        visitor.on_attribute("columns", columns);
        visitor.on_attribute("biased", biased);
        visitor.on_attribute("activation", activation);
        visitor.on_attribute("set", set);
        visitor.on_attribute("threads", threads);
    }

    static int64_t filled(int64_t bytes) { return (bytes + 63) / 64 * 64; }
    int64_t starts() const { return divided_up(outputs, height) * parts + 1; }
    int64_t value_at() const { return filled(4 * starts()); }
    int64_t bias_at() const { return value_at() + filled(4 * columns * height); }
    int64_t index_at() const { return bias_at() + (biased ? filled(4 * outputs) : 0); }
    int64_t bytes() const { return index_at() + filled(2 * columns); }

    Rows rows(const char *from) const {
        Rows w = {};
        w.outputs = outputs, w.inputs = inputs, w.height = height, w.parts = parts;
        w.start = reinterpret_cast<const int32_t *>(from);
        w.value = reinterpret_cast<const float *>(from + value_at());
        w.index = reinterpret_cast<const uint16_t *>(from + index_at());
        return w;
    }

    const float *bias(const char *from) const { return biased ? reinterpret_cast<const float *>(from + bias_at()) : nullptr; }

    void check() const {
        const bool sizes = outputs > 0 && outputs < MOST && inputs > 0 && inputs <= MOST_INPUTS && height > 0 &&
                           height <= MOST_INPUTS && parts > 0 && parts <= MOST_INPUTS && columns >= 0 && columns < MOST;
        OPENVINO_ASSERT(sizes && (parts == 1 || height <= Rows::CHUNK), "a sparse layer of impossible size");
        OPENVINO_ASSERT(activation >= NONE && activation <= GELU, "activation ", activation, " of a sparse layer");
        OPENVINO_ASSERT(threads >= 1 && threads <= MOST_THREADS, "a sparse layer on ", threads, " threads");
        OPENVINO_ASSERT(set >= 0 && set < SETS && kernels[set].linear,
                        "no sparse kernels of set ", set, " are loaded: open the file with paretoprune");
    }

    // So that the kernels, which check nothing, stay inside.
    void check_positions(const char *from) const {
        const Rows w = rows(from);
        bool sound = w.start[0] == 0 && w.start[starts() - 1] == columns;
        for (int64_t i = 1; i < starts(); i++) sound &= w.start[i - 1] <= w.start[i];
        for (int64_t i = 0; i < columns; i++) sound &= w.index[i] < inputs;
        OPENVINO_ASSERT(sound, "positions of a sparse layer lie outside its weight: truncated or altered; export it again");
    }
};

// Inputs: x, the constant, and perhaps what is added in front of the activation.
class Sparse : public ov::op::Op {
   public:
    Sparse() = default;
    Sparse(const ov::OutputVector &inputs, const About &about, const std::shared_ptr<std::atomic<const void *>> &sound)
        : Op(inputs), about_(about), sound_(sound) {}

    void validate_and_infer_types() override {
        about_.check();
        OPENVINO_ASSERT(get_input_size() == 2 || get_input_size() == 3, "a sparse layer of ", get_input_size(), " inputs");
        OPENVINO_ASSERT(get_input_element_type(0) == ov::element::f32, "a sparse layer takes f32, not ",
                        get_input_element_type(0));
        const auto constant = ov::as_type_ptr<ov::op::v0::Constant>(get_input_node_shared_ptr(1));
        OPENVINO_ASSERT(constant && constant->get_element_type() == ov::element::u8 &&
                            static_cast<int64_t>(constant->get_byte_size()) == about_.bytes(),
                        "the weight of a sparse layer is not a constant of ", about_.bytes(), " bytes: truncated or altered");
        const char *from = static_cast<const char *>(constant->get_data_ptr());
        aligned(from);
        // Shapes of dynamic networks are inferred with every call, on copies of this operator.
        if (sound_->load() != from) about_.check_positions(from), sound_->store(from);
        set_output_type(0, ov::element::f32, shape(get_input_partial_shape(0)));
        if (get_input_size() < 3) return;
        const bool fits = get_input_element_type(2) == ov::element::f32 &&
                          get_input_partial_shape(2).compatible(get_output_partial_shape(0));
        OPENVINO_ASSERT(fits, "to a sparse layer's ", get_output_partial_shape(0), " ", get_input_partial_shape(2),
                        " cannot be added");
    }

    bool visit_attributes(ov::AttributeVisitor &visitor) override {
        about_.visit(visitor);
        return true;
    }

    bool has_evaluate() const override { return true; }

    bool evaluate(ov::TensorVector &outputs, const ov::TensorVector &inputs) const override {
        const ov::Shape wanted = shape(inputs[0].get_shape()).to_shape();
        outputs[0].set_shape(wanted);
        OPENVINO_ASSERT(static_cast<int64_t>(inputs[1].get_byte_size()) == about_.bytes(), "a weight of another size");
        OPENVINO_ASSERT(inputs.size() < 3 || inputs[2].get_shape() == wanted, "to a sparse layer's ", wanted, " ",
                        inputs.size() < 3 ? wanted : inputs[2].get_shape(), " cannot be added: sizes must be equal");
        if (ov::shape_size(wanted) == 0) return true;
        const char *from = static_cast<const char *>(inputs[1].data());
        aligned(from);
        const Finish finish = {about_.bias(from), inputs.size() < 3 ? nullptr : static_cast<const float *>(inputs[2].data()),
                               static_cast<int32_t>(about_.activation)};
        run(about_.rows(from), finish, inputs[0], static_cast<float *>(outputs[0].data()));
        return true;
    }

   protected:
    About about_;

    virtual ov::PartialShape shape(const ov::PartialShape &x) const = 0;
    virtual void run(const Rows &w, const Finish &finish, const ov::Tensor &x, float *y) const = 0;

    template <class T>
    std::shared_ptr<ov::Node> copy(const ov::OutputVector &inputs) const {
        const auto made = std::make_shared<T>(inputs, about_, sound_);
        made->validate_and_infer_types();
        return made;
    }

    int32_t threads() const { return static_cast<int32_t>(about_.threads); }

   private:
    static void aligned(const char *from) {
        OPENVINO_ASSERT(reinterpret_cast<uintptr_t>(from) % 4 == 0, "the weight of a sparse layer is not aligned");
    }

    std::shared_ptr<std::atomic<const void *>> sound_ = std::make_shared<std::atomic<const void *>>(nullptr);
};

class SparseLinear : public Sparse {
   public:
    OPENVINO_OP("SparseLinear", "paretoprune");
    using Sparse::Sparse;

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector &inputs) const override {
        return copy<SparseLinear>(inputs);
    }

   protected:
    ov::PartialShape shape(const ov::PartialShape &x) const override {
        if (x.rank().is_dynamic()) return x;
        const int64_t rank = x.rank().get_length();
        OPENVINO_ASSERT(rank > 0 && x[rank - 1].compatible(about_.inputs), "x of shape ", x, " for a sparse layer of ",
                        about_.inputs, " inputs");
        ov::PartialShape y = x;
        y[rank - 1] = about_.outputs;
        return y;
    }

    void run(const Rows &w, const Finish &finish, const ov::Tensor &x, float *y) const override {
        const Kernels &k = kernels[about_.set];
        const int64_t rows = static_cast<int64_t>(x.get_size()) / w.inputs;
        k.linear(&w, &finish, static_cast<const float *>(x.data()), y, rows, room(k.linear_work(&w, rows, threads())),
                 threads());
    }
};

class SparseConv : public Sparse {
   public:
    OPENVINO_OP("SparseConv", "paretoprune");
    using Sparse::Sparse;

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector &inputs) const override {
        return copy<SparseConv>(inputs);
    }

    bool visit_attributes(ov::AttributeVisitor &visitor) override {
        visitor.on_attribute("window", about_.window);
        return Sparse::visit_attributes(visitor);
    }

    void validate_and_infer_types() override {
        const auto &w = about_.window;
        bool sound = w.size() == 8;
        for (size_t i = 0; sound && i < 8; i++) sound = w[i] >= (i < 4 ? 1 : 0) && w[i] < MOST_INPUTS;
        OPENVINO_ASSERT(sound && about_.inputs % (w[0] * w[1]) == 0, "a sparse convolution with an impossible window");
        Sparse::validate_and_infer_types();
    }

   protected:
    int64_t channels() const { return about_.inputs / (about_.window[0] * about_.window[1]); }

    ov::PartialShape shape(const ov::PartialShape &x) const override {
        OPENVINO_ASSERT(x.rank().compatible(4), "x of shape ", x, " for a sparse convolution");
        if (x.rank().is_dynamic()) return ov::PartialShape::dynamic(4);
        OPENVINO_ASSERT(x[1].compatible(channels()), "x of shape ", x, " for a sparse convolution of ", channels(),
                        " channels");
        return {x[0], about_.outputs, side(x, 0), side(x, 1)};
    }

    ov::Dimension side(const ov::PartialShape &x, int axis) const {
        if (x[2 + axis].is_dynamic()) return {};
        const auto &w = about_.window;
        const int64_t room = x[2 + axis].get_length() + w[4 + axis] + w[6 + axis] - w[axis];
        OPENVINO_ASSERT(room >= 0, "x of shape ", x, ": smaller than the kernel");
        return room / w[2 + axis] + 1;
    }

    void run(const Rows &weights, const Finish &finish, const ov::Tensor &x, float *y) const override {
        const Kernels &k = kernels[about_.set];
        const auto &s = x.get_shape();
        const auto &w = about_.window;
        const Geometry g = {channels(), int64_t(s[2]), int64_t(s[3]), w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]};
        // Distances within an image are 32-bit numbers.
        const double high = g.high + g.pad_top + g.pad_bottom + g.stride_high;
        const double wide = g.wide + g.pad_left + g.pad_right + g.stride_wide;
        OPENVINO_ASSERT(x.get_size() > 0, "x of shape ", s, ": smaller than the kernel");
        OPENVINO_ASSERT(high * wide * (g.channels + 4) < MOST, "x of shape ", s, ": an image of 2^31 elements or more");
        k.conv(&weights, &g, &finish, static_cast<const float *>(x.data()), y, s[0], room(k.conv_work(&weights, &g, threads())),
               threads());
    }
};

}  // namespace

// Functions of the library of one instruction set. They stay loaded as long as the process.
extern "C" __attribute__((visibility("default"))) int pp_openvino_kernels(int set, Kernels given) {
    if (set < 0 || set >= SETS) return 1;
    kernels[set] = given;
    return 0;
}

OPENVINO_CREATE_EXTENSIONS(std::vector<ov::Extension::Ptr>({std::make_shared<ov::OpExtension<SparseLinear>>(),
                                                            std::make_shared<ov::OpExtension<SparseConv>>()}));
