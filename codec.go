package rediscache

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
)

// Codec encodes values to the bytes that a cache stores, and decodes them. It must
// be safe for concurrent use. Decode owns data: it may keep and change it. Decode
// must return an error for bytes that Encode cannot have written, such as those of
// another program. A [View] treats the error as a miss; a codec that decodes such
// bytes to a zero value serves that value until it expires. The caller of Encode
// only reads the result.
type Codec[V any] interface {
	Encode(value V) ([]byte, error)
	Decode(data []byte) (V, error)
}

// JSON returns a [Codec] that stores JSON, as encoding/json writes and reads it.
// Decode returns an error for two inputs that encoding/json accepts but never
// writes:
//
//   - null for a type that is never encoded to null, such as an int or a struct.
//     For a pointer, a map, a slice, an interface, or a type whose MarshalJSON
//     writes null, null is decoded as usual.
//   - an array whose length differs from that of the Go array.
//
// Inside an object Decode is as lenient as encoding/json: it drops unknown fields,
// and a field that is missing or null keeps its zero value. During a deployment two
// versions of a program share their keys, and a stricter codec would turn the
// values of the other version into misses. If you change the meaning of a type,
// change the prefix too.
func JSON[V any]() Codec[V] { return jsonCodec[V]{} }

type jsonCodec[V any] struct{}

func (jsonCodec[V]) Encode(value V) ([]byte, error) { return json.Marshal(value) }

func (jsonCodec[V]) Decode(data []byte) (value V, err error) {
	if err = json.Unmarshal(data, &value); err != nil {
		return value, err
	}
	t := reflect.TypeFor[V]()
	if !isNull(data) && t.Kind() != reflect.Array {
		return value, nil
	}
	// V may have a MarshalJSON, so only Marshal shows what encoding/json writes for V.
	again, err := json.Marshal(value)
	if err == nil && (isNull(again) != isNull(data) || elements(again) != elements(data)) {
		err = fmt.Errorf("encoding/json does not write this JSON for a %v", t)
	}
	return value, err
}

// isNull reports whether valid JSON is null.
func isNull(data []byte) bool { return bytes.TrimSpace(data)[0] == 'n' }

// elements returns the length of a JSON array, and zero for all other JSON.
func elements(data []byte) int {
	var array []json.RawMessage
	_ = json.Unmarshal(data, &array) // after an error array is nil
	return len(array)
}

// Bytes returns a [Codec] that stores bytes as they are. With it [Of] returns an
// error for a [Policy.Negative].
func Bytes() Codec[[]byte] { return bytesCodec{} }

type bytesCodec struct{}

func (bytesCodec) Encode(value []byte) ([]byte, error) { return value, nil }
func (bytesCodec) Decode(data []byte) ([]byte, error)  { return data, nil }

// String returns a [Codec] that stores strings as they are. With it [Of] returns
// an error for a [Policy.Negative].
func String() Codec[string] { return stringCodec{} }

type stringCodec struct{}

func (stringCodec) Encode(value string) ([]byte, error) { return []byte(value), nil }
func (stringCodec) Decode(data []byte) (string, error)  { return string(data), nil }

// emptiesZero reports whether codec encodes the zero value to no bytes. A codec that
// encodes any value to no bytes usually does so for the zero value. It returns false
// if Encode returns an error or panics.
func emptiesZero[V any](codec Codec[V]) (empties bool) {
	defer func() {
		if recover() != nil {
			empties = false
		}
	}()
	var zero V
	data, err := codec.Encode(zero)
	return err == nil && len(data) == 0
}
