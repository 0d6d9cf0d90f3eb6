package codecs

import (
	"errors"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/rediscache/rediscache"
)

// Protobuf returns a codec for M, a pointer to a generated message. It stores the
// message in a google.protobuf.Any, which names the type of the message: bare protobuf
// decodes to a message of almost any type without an error, and stores an empty message
// as no bytes, which a View with a Negative policy could not tell from "no such value".
// Encode returns an error for a nil message.
func Protobuf[M proto.Message]() rediscache.Codec[M] { return protobuf[M]{} }

type protobuf[M proto.Message] struct{}

func (protobuf[M]) Encode(message M) ([]byte, error) {
	if !message.ProtoReflect().IsValid() {
		return nil, errors.New("codecs: the message is nil")
	}
	wrapped, err := anypb.New(message)
	if err != nil {
		return nil, err
	}
	return proto.Marshal(wrapped)
}

func (protobuf[M]) Decode(data []byte) (M, error) {
	var none M
	var wrapped anypb.Any
	if err := proto.Unmarshal(data, &wrapped); err != nil {
		return none, err
	}
	message := none.ProtoReflect().New().Interface().(M)
	if err := wrapped.UnmarshalTo(message); err != nil {
		return none, err
	}
	return message, nil
}
