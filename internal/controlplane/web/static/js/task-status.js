import { TaskElement } from './element.js'
import { setIcon } from './icons.js'
import { t } from './words.js'

/** The nine statuses in words. */
export const STATUS_WORDS = {
  pending: t('Pending'), awaiting_approval: t('Awaiting approval'), approved: t('Approved'), installing: t('Installing'),
  verifying: t('Verifying'), completed: t('Completed'), failed: t('Failed'), rejected: t('Rejected'), canceled: t('Canceled'),
}

/** Icon and word of a task's status. */
class TaskStatus extends TaskElement {
  static types = ['status']

  draw({ status }) {
    if (!STATUS_WORDS[status] || status === this.dataset.status) return
    this.dataset.status = status
    setIcon(this, status)
    this.querySelector('span').textContent = STATUS_WORDS[status]
  }
}
customElements.define('task-status', TaskStatus)
