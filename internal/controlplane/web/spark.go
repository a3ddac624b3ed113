package web

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/lpmos/lpmos"
	"github.com/lpmos/lpmos/internal/controlplane/api"
)

// sparkView is a trend as a line, beside the number that it is the past of. The
// paths are empty where there is no line yet. speed-trend.js draws the same.
type sparkView struct {
	Small         bool
	Width, Height int
	Line, Area    string
	Label         string
	Values        string // for scripts
}

// newSpark draws values, the newest at the right edge, on a line that has room
// for length of them.
func newSpark(values []int64, length, width, height int, label string) sparkView {
	v := sparkView{Width: width, Height: height, Label: label}
	var words, points []string
	first := 0.0
	for i, n := range values {
		words = append(words, strconv.FormatInt(n, 10))
		x := float64(width) * float64(length-len(values)+i) / float64(length-1)
		if i == 0 {
			first = x
		}
		// A pixel above and below, for the width of the line.
		y := float64(height-1) - float64(n)/float64(max(slices.Max(values), 1))*float64(height-2)
		points = append(points, fmt.Sprintf("%.1f %.1f", x, y))
	}
	v.Values = strings.Join(words, " ")
	if len(points) > 1 {
		v.Line = "M" + strings.Join(points, " L")
		v.Area = fmt.Sprintf("%s L%d %d L%.1f %dz", v.Line, width, height, first, height)
	}
	return v
}

// speedTrend is the speed of a running install in the last minutes.
func (w *Web) speedTrend(t lpmos.Task) sparkView {
	speeds := w.reader.Trend(t.ID)
	v := newSpark(speeds, api.TrendLength, 72, 18, "")
	v.Small = true
	if len(speeds) > 0 {
		v.Label = w.T("Speed of the last minutes, up to %s", w.speed(slices.Max(speeds)))
	}
	return v
}

// paceView is how fast installs get done.
type paceView struct {
	Spark     sparkView // completed in each hour
	Completed string
	Half      string // "" when not known
	Traffic   string // "" when nothing is downloaded
}

func (w *Web) newPace(p api.Pace) paceView {
	hours := make([]int64, len(p.Hours))
	for i, n := range p.Hours {
		hours[i] = int64(n)
	}
	v := paceView{Completed: w.T("none")}
	if p.Completed > 0 {
		v.Completed = w.T("%s, and %s at the first attempt", count(p.Completed), w.percent(p.First*100/p.Completed))
		v.Spark = newSpark(hours, len(hours), 300, 32, w.T("Installs completed in each hour, from %s to %s", count(int(slices.Min(hours))), count(int(slices.Max(hours)))))
	}
	if p.Half > 0 {
		v.Half = w.took(p.Half)
	}
	if p.BytesPerSecond > 0 {
		v.Traffic = w.speed(p.BytesPerSecond)
	}
	return v
}
