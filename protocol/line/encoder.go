package line

import (
	"strconv"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
)

// AppendMsg appends the head of a MSG frame; the payload and AppendEnd follow.
func AppendMsg(dst, subject, sid []byte, size int) []byte {
	dst = append(dst, "MSG "...)
	dst = append(dst, subject...)
	dst = append(dst, ' ')
	dst = append(dst, sid...)
	dst = append(dst, ' ')
	dst = strconv.AppendInt(dst, int64(size), 10)
	return append(dst, '\r', '\n')
}

// Sizes are what an HMSG announces.
type Sizes struct {
	Header int // of the header block
	Total  int // of header block and payload together
}

// AppendHMsg appends the head of an HMSG frame; header block, payload and AppendEnd follow.
func AppendHMsg(dst, subject, sid []byte, s Sizes) []byte {
	dst = append(dst, "HMSG "...)
	dst = append(dst, subject...)
	dst = append(dst, ' ')
	dst = append(dst, sid...)
	dst = append(dst, ' ')
	dst = strconv.AppendInt(dst, int64(s.Header), 10)
	dst = append(dst, ' ')
	dst = strconv.AppendInt(dst, int64(s.Total), 10)
	return append(dst, '\r', '\n')
}

// Head is what a frame of a live subject says of its message before the sizes.
type Head struct {
	Subject, SID []byte
	Reply        []byte // empty: none
}

func (h *Head) append(dst []byte, verb string) []byte {
	dst = append(dst, verb...)
	dst = append(dst, h.Subject...)
	dst = append(dst, ' ')
	dst = append(dst, h.SID...)
	dst = append(dst, ' ')
	if len(h.Reply) > 0 {
		dst = append(dst, h.Reply...)
		dst = append(dst, ' ')
	}
	return dst
}

// AppendMsgReply is AppendMsg for a message that may want a reply.
func AppendMsgReply(dst []byte, h Head, size int) []byte {
	dst = strconv.AppendInt(h.append(dst, "MSG "), int64(size), 10)
	return append(dst, '\r', '\n')
}

// AppendHMsgReply is AppendHMsg for a message that may want a reply.
func AppendHMsgReply(dst []byte, h Head, s Sizes) []byte {
	dst = strconv.AppendInt(h.append(dst, "HMSG "), int64(s.Header), 10)
	dst = append(dst, ' ')
	dst = strconv.AppendInt(dst, int64(s.Total), 10)
	return append(dst, '\r', '\n')
}

// AppendEnd appends the line end after a payload.
func AppendEnd(dst []byte) []byte { return append(dst, '\r', '\n') }

// AppendOK appends "+OK", with a detail where there is one.
func AppendOK(dst []byte, detail string) []byte {
	dst = append(dst, "+OK"...)
	if detail != "" {
		dst = append(dst, ' ')
		dst = append(dst, detail...)
	}
	return append(dst, '\r', '\n')
}

// AppendData appends a whole DATA frame.
func AppendData(dst, body []byte) []byte {
	dst = append(dst, "DATA "...)
	dst = strconv.AppendInt(dst, int64(len(body)), 10)
	dst = append(dst, '\r', '\n')
	dst = append(dst, body...)
	return append(dst, '\r', '\n')
}

// AppendErr appends the final answer of a request that failed.
func AppendErr(dst []byte, e *errcode.Error) []byte {
	return appendErr(dst, "", e, "")
}

// AppendAsyncErr appends an error that is no request's final answer; about says whose: "PUB orders".
func AppendAsyncErr(dst []byte, e *errcode.Error, about string) []byte {
	return appendErr(dst, "ASYNC ", e, about)
}

func appendErr(dst []byte, kind string, e *errcode.Error, about string) []byte {
	dst = append(dst, "-ERR "...)
	dst = append(dst, kind...)
	dst = append(dst, e.Code...)
	dst = append(dst, " '"...)
	if about != "" {
		dst = append(dst, errcode.Clean(about)...)
		dst = append(dst, ": "...)
	}
	dst = append(dst, e.Text()...)
	return append(dst, '\'', '\r', '\n')
}

// AppendNATSErr appends an error in NATS's own form, for libraries that close themselves on a text they do not know.
func AppendNATSErr(dst []byte, text string) []byte {
	dst = append(dst, "-ERR '"...)
	dst = append(dst, errcode.Clean(text)...)
	return append(dst, '\'', '\r', '\n')
}
