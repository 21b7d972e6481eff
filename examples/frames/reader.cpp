// Reads docs/frames-conformance.txt, and prints what its answers say: a reader of frames in C++17 without any library.
//     g++ -std=c++17 -o reader examples/frames/reader.cpp && ./reader docs/frames-conformance.txt
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>

using std::string;

static string unhex(const string& text) {
    string bytes;
    for (size_t place = 0; place + 1 < text.size(); place += 2) bytes += char(std::stoi(text.substr(place, 2), nullptr, 16));
    return bytes;
}

static string hex(const string& bytes) {
    string text;
    char digits[3];
    for (unsigned char byte : bytes) text += (std::snprintf(digits, 3, "%02x", byte), digits);
    return text;
}

static uint64_t number(const string& bytes, size_t place, int size) {  // little-endian, on any machine
    uint64_t value = 0;
    for (int byte = size - 1; byte >= 0; --byte) value = value << 8 | uint8_t(bytes.at(place + byte));
    return value;
}

struct Fields {  // of a protobuf message, one after the other
    const string& message;
    size_t place = 0;
    uint64_t key = 0, value = 0;
    string content;

    uint64_t varint() {
        uint64_t read = 0;
        for (int shift = 0;; shift += 7) {
            uint8_t byte = uint8_t(message.at(place++));
            if (shift < 64) read |= uint64_t(byte & 127) << shift;
            if (byte < 128) return read;
        }
    }

    bool next() {
        if (place >= message.size()) return false;
        uint64_t tag = varint();
        key = tag >> 3;
        value = varint();
        if ((tag & 7) == 2) {
            if (value > message.size() - place) throw std::runtime_error("a field is longer than its message");
            content = message.substr(place, value);
            place += value;
        } else if (tag & 7) {
            throw std::runtime_error("an unexpected wire type");
        }
        return true;
    }
};

static void tell(const string& frame) {
    uint64_t kind = number(frame, 4, 1), message_bytes = number(frame, 8, 4), rows_bytes = number(frame, 12, 4);
    if (frame.substr(0, 4) != "MFF1" || frame.size() != 32 + message_bytes + rows_bytes) throw std::runtime_error("no frame");
    string message = frame.substr(32, message_bytes), rows = frame.substr(32 + message_bytes);
    std::cout << "number " << number(frame, 16, 8) << "\n";
    size_t start = 0;
    for (Fields field{message}; field.next();) {
        if (kind == 17) {
            std::cout << "refusal " << field.key << " " << field.content << "\n";
        } else if (field.key == 1) {
            std::cout << "version " << field.content << "\n";
        } else if (field.key == 2) {
            string name, precision;
            uint64_t row_bytes = 0, dim = 0, unknown = 0, num_rows = 0;
            for (Fields part{field.content}; part.next();) {
                if (part.key == 1) name = part.content;
                if (part.key == 3) row_bytes = part.value;
                if (part.key == 4) dim = part.value;
                if (part.key == 5) precision = part.content;
                if (part.key == 6) unknown = part.value;
                if (part.key == 7) num_rows = part.value;
            }
            std::cout << "table " << name << " " << row_bytes << " " << dim << " " << precision << " " << unknown << " "
                      << hex(rows.substr(start, row_bytes * num_rows)) << "\n";
            start += (row_bytes * num_rows + 7) / 8 * 8;
        }
    }
    if (start != rows.size()) throw std::runtime_error("rows that no table owns");
}

int main(int, char** arguments) {
    std::ifstream file(arguments[1]);
    for (string line; std::getline(file, line);)
        if (line.rfind("answer ", 0) == 0) tell(unhex(line.substr(7)));
}
