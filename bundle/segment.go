package bundle

import (
	"fmt"
	"io"
	"sort"
	"strconv"
	"strings"

	"lethe/authdb"
	"lethe/fault"
)

// SegmentName returns the name of the segment of that span, for instance
// "authdb/1201-1377".
func SegmentName(span authdb.Span) string {
	return fmt.Sprintf("%s%d-%d", SegmentPrefix, span.From, span.To)
}

// SegmentSpan returns the span in a segment's name, and false for any other
// name.
func SegmentSpan(name string) (authdb.Span, bool) {
	from, to, _ := strings.Cut(strings.TrimPrefix(name, SegmentPrefix), "-")
	var s authdb.Span
	var err1, err2 error
	s.From, err1 = strconv.ParseUint(from, 10, 64)
	s.To, err2 = strconv.ParseUint(to, 10, 64)
	return s, err1 == nil && err2 == nil && s.From <= s.To && SegmentName(s) == name
}

// spans returns the spans of the set's segments in their order, which is not
// that of their names.
func (s *Set) spans() []authdb.Span {
	var spans []authdb.Span
	for _, f := range s.manifest.Files {
		if span, ok := SegmentSpan(f.Name); ok {
			spans = append(spans, span)
		}
	}
	sort.Slice(spans, func(i, j int) bool { return spans[i].From < spans[j].From })
	return spans
}

// Segments opens the set's segments, oldest first. They share the memory of the
// Set and are counted apart from it; the caller closes them.
func (s *Set) Segments() (segments []*authdb.Segment, err error) {
	defer func() {
		if err != nil {
			closeAll(segments)
			segments = nil
		}
	}()
	for _, span := range s.spans() {
		content, release, _ := s.Borrow(SegmentName(span))
		g, err := authdb.Borrow(content, release)
		if err != nil {
			return segments, err
		}
		segments = append(segments, g)
		if g.Head().Span != span {
			return segments, fault.New(fault.Untrusted, "bundle: a segment is not the one its name says")
		}
	}
	return segments, nil
}

func closeAll(segments []*authdb.Segment) {
	for _, g := range segments {
		g.Close()
	}
}

// Database opens the set's authentication database. It outlives the Set; its
// owner closes it.
func (s *Set) Database() (*authdb.DB, error) {
	segments, err := s.Segments()
	if err != nil {
		return nil, err
	}
	defer closeAll(segments) // the database has its own claim
	return authdb.NewDB(segments...)
}

// MergeSegments is the [Rebuild] of servers: it makes a merged segment out of
// the segments that the server holds, so that a publisher's tidying costs no
// download.
func MergeSegments(f File, have *Set, w io.Writer) bool {
	want, ok := SegmentSpan(f.Name)
	if !ok || have == nil {
		return false
	}
	held := have.spans()
	var parts []*authdb.Segment
	for _, i := range authdb.Cover(held, want) {
		part, err := authdb.Open(have.files[SegmentName(held[i])].data)
		if err != nil {
			return false
		}
		defer part.Close()
		parts = append(parts, part)
	}
	return len(parts) > 1 && authdb.Merge(w, parts...) == nil
}
