package rest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/lpmos/lpmos"
)

// conditional answers with body and an ETag of its content, or with 304 when
// the client has it (RFC 9110, If-None-Match). A revision of the store that
// changed nothing else is no new content: part of it is what the tag is of,
// when that is given.
func (a *API) conditional(c *gin.Context, body any, part ...any) {
	b, err := json.Marshal(body)
	if err != nil {
		a.fail(c, err)
		return
	}
	of := b
	if len(part) > 0 {
		if of, err = json.Marshal(part); err != nil {
			a.fail(c, err)
			return
		}
	}
	sum := sha256.Sum256(of)
	a.tagged(c, `W/"`+hex.EncodeToString(sum[:12])+`"`, b)
}

// tagged answers with b under an ETag, or with 304.
func (a *API) tagged(c *gin.Context, tag string, b []byte) {
	c.Header("ETag", tag)
	c.Header("Cache-Control", "no-cache") // may be kept, but is asked about
	if matches(c.GetHeader("If-None-Match"), tag) {
		c.Status(http.StatusNotModified)
		c.Writer.WriteHeaderNow()
		return
	}
	c.Data(http.StatusOK, "application/json; charset=utf-8", b)
}

// matches reports whether a list of tags holds one, by weak comparison.
func matches(list, tag string) bool {
	tag = strings.TrimPrefix(tag, "W/")
	for one := range strings.SplitSeq(list, ",") {
		one = strings.TrimSpace(one)
		if one == "*" || strings.TrimPrefix(one, "W/") == tag {
			return true
		}
	}
	return false
}

// revTag is the ETag of something that is stored under one key: the revision
// that wrote it.
func revTag(rev int64) string { return `"` + strconv.FormatInt(rev, 10) + `"` }

// tagOf is the ETag of what is named by what it says, such as Limits.Tag.
func tagOf(tag string) string { return `"` + tag + `"` }

// matched is the tag that If-Match demands of what a write replaces, "" for
// none.
func (a *API) matched(c *gin.Context) (string, bool) {
	h := c.GetHeader("If-Match")
	tag := strings.Trim(h, `"`)
	if h != "" && (tag == "" || h != tagOf(tag)) {
		a.fail(c, &lpmos.InvalidError{Field: "If-Match", Problem: "is not the ETag of an earlier answer (one, in quotation marks)", Value: h})
		return "", false
	}
	return tag, true
}

// anyRev stands for a write without a condition.
const anyRev = -1

// ifMatch reads what a write demands: the revision that If-Match names, 0 (it
// must not exist) for "If-None-Match: *", or anyRev without either.
func (a *API) ifMatch(c *gin.Context) (int64, bool) {
	match, none := c.GetHeader("If-Match"), c.GetHeader("If-None-Match")
	switch {
	case none == "*" && match == "":
		return 0, true
	case match == "" && none == "":
		return anyRev, true
	}
	rev, err := strconv.ParseInt(strings.Trim(match, `"`), 10, 64)
	if none != "" || err != nil || rev < 1 || match != revTag(rev) {
		a.fail(c, &lpmos.InvalidError{Field: "If-Match", Problem: "is not the ETag of an earlier answer (one, in quotation marks); to create only, send If-None-Match: *", Value: match + none})
		return 0, false
	}
	return rev, true
}
