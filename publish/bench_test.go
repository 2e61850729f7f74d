package publish_test

import (
	"fmt"
	"testing"
	"time"
)

// BenchmarkChurn is the whole way of a day's churn of 1 %: changes in the
// register, publisher, sealed delta, HTTP, client, open database. The first run
// has 100,000 credentials; BenchmarkChurn/4M is the size the service is made for
// and takes 1 GB of memory.
func BenchmarkChurn(b *testing.B) {
	for name, size := range map[string]int{"100k": 100_000, "4M": 4_000_000} {
		b.Run(name, func(b *testing.B) {
			if testing.Short() && size > 1_000_000 {
				b.Skip("short")
			}
			churn(b, size)
		})
	}
}

func churn(b *testing.B, size int) {
	s := newService(b)
	for i := range size {
		s.reg.put(fmt.Sprintf("user%012d", i), "pppppppppppppppppppppppppp", today)
	}
	p := s.open()
	n := s.server()
	begin := time.Now()
	s.publish(p)
	full := time.Since(begin)
	begin = time.Now()
	n.poll()
	boot, base := time.Since(begin), n.bytes
	var publishing, applying time.Duration
	n.bytes = 0
	round := 0
	for b.Loop() {
		round++
		for i := range size / 100 {
			s.reg.put(fmt.Sprintf("user%012d", (round*size/100+i)%size), "qqqqqqqqqqqqqqqqqqqqqqqqqq", today)
		}
		s.now = s.now.Add(2 * time.Minute)
		begin = time.Now()
		s.publish(p)
		publishing += time.Since(begin)
		begin = time.Now()
		n.poll()
		applying += time.Since(begin)
	}
	b.ReportMetric(full.Seconds(), "s/full-publish")
	b.ReportMetric(float64(base)/float64(size), "B/credential")
	b.ReportMetric(boot.Seconds(), "s/boot-fetch")
	b.ReportMetric(float64(n.bytes)/float64(round), "B/churn")
	b.ReportMetric(publishing.Seconds()*1000/float64(round), "ms/publish")
	b.ReportMetric(applying.Seconds()*1000/float64(round), "ms/apply")
}
