package rest

import (
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/lpmos/lpmos"
)

// stopBody says whether the emergency stop stands.
type stopBody struct {
	Stopped bool `json:"stopped"`
	*lpmos.Stop
}

func (a *API) getStop(c *gin.Context) {
	s := a.read.Stopped()
	c.JSON(http.StatusOK, stopBody{s != nil, s})
}

func (a *API) putStop(c *gin.Context) {
	var req reason
	if c.Request.ContentLength != 0 && !a.decode(c, &req) {
		return
	}
	s, err := a.act.Stop(c.Request.Context(), req.Reason, who(c))
	if err != nil {
		a.fail(c, err)
		return
	}
	c.JSON(http.StatusOK, stopBody{true, &s})
}

func (a *API) deleteStop(c *gin.Context) {
	if err := a.act.Resume(c.Request.Context(), who(c)); err != nil {
		a.fail(c, err)
		return
	}
	c.Status(http.StatusNoContent)
}

func (a *API) lockMachine(c *gin.Context) {
	mac, err := lpmos.ParseMAC(c.Param("mac"))
	if err != nil {
		a.fail(c, err)
		return
	}
	var req reason
	if !a.decode(c, &req) {
		return
	}
	l, err := a.act.Lock(c.Request.Context(), mac, req.Reason, who(c))
	if err != nil {
		a.fail(c, err)
		return
	}
	c.JSON(http.StatusOK, l)
}

func (a *API) unlockMachine(c *gin.Context) {
	mac, err := lpmos.ParseMAC(c.Param("mac"))
	if err == nil {
		err = a.act.Unlock(c.Request.Context(), mac, who(c))
	}
	if err != nil {
		a.fail(c, err)
		return
	}
	c.Status(http.StatusNoContent)
}

func (a *API) forgetTPM(c *gin.Context) {
	mac, err := lpmos.ParseMAC(c.Param("mac"))
	if err == nil {
		err = a.act.ForgetTPM(c.Request.Context(), mac, who(c))
	}
	if err != nil {
		a.fail(c, err)
		return
	}
	c.Status(http.StatusNoContent)
}

func (a *API) getLimits(c *gin.Context) { a.limits(c, a.read.Limits(), nil) }

func (a *API) putLimits(c *gin.Context) {
	based, ok := a.matched(c)
	if !ok {
		return
	}
	var l lpmos.Limits
	if !a.decode(c, &l) {
		return
	}
	l, err := a.act.SetLimits(c.Request.Context(), l, based, who(c))
	a.limits(c, l, err)
}

func (a *API) limits(c *gin.Context, l lpmos.Limits, err error) {
	if err != nil {
		a.fail(c, err)
		return
	}
	l.Protected = list(l.Protected)
	c.Header("ETag", tagOf(l.Tag()))
	c.JSON(http.StatusOK, l)
}

func (a *API) getApprovalPolicy(c *gin.Context) { a.approvalPolicy(c, a.read.ApprovalPolicy(), nil) }

func (a *API) putApprovalPolicy(c *gin.Context) {
	based, ok := a.matched(c)
	if !ok {
		return
	}
	var p lpmos.ApprovalPolicy
	if !a.decode(c, &p) {
		return
	}
	p, err := a.act.SetApprovalPolicy(c.Request.Context(), p, based, who(c))
	a.approvalPolicy(c, p, err)
}

func (a *API) approvalPolicy(c *gin.Context, p lpmos.ApprovalPolicy, err error) {
	if err != nil {
		a.fail(c, err)
		return
	}
	p.Rules = list(p.Rules)
	if p.Labels == nil {
		p.Labels = map[string][]string{}
	}
	c.Header("ETag", tagOf(p.Tag()))
	c.JSON(http.StatusOK, p)
}
